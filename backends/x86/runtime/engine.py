"""The quantized engine of torch, which is one for the whole process: set it for a while, and put it back."""

from __future__ import annotations

import functools
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

import torch

from ....compiler.core.interrupts import checkpoint, put_back_after

Engine = Literal["fbgemm", "onednn"]  # those with kernels for convolutions and linear layers

FBGEMM: Engine = "fbgemm"
ONEDNN: Engine = "onednn"
QNNPACK = "qnnpack"


class _Call:
    """One call that needs the engine ``name``.

    Attributes:
        admitted: set when the call may run.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.admitted = threading.Event()


class _Room:
    """Calls that need the same engine share the room; calls that need another one wait until it is empty.

    The first call to enter sets the engine, the last to leave puts the user's engine back. Calls enter in the order of
    their arrival, so that a stream of calls for one engine does not starve the others.

    An exception may come between any two lines. So what is in the room is a set of calls, not a number, and each step
    can be done again.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._inside: set[_Call] = set()
        self._queue: deque[_Call] = deque()
        self._outer: str | None = None  # the user's engine, while ours is set
        self._own = threading.local()

    def run(self, name: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call ``function`` under the engine ``name``."""
        holds: list[_Call] = self._own.__dict__.setdefault("holds", [])
        if holds and holds[-1].name == name:
            return function(*args, **kwargs)
        outer, call = (holds[-1] if holds else None), _Call(name)

        def work() -> Any:
            if outer is not None:
                self._leave(outer)
            self._enter(call)
            holds.append(call)
            return function(*args, **kwargs)

        return put_back_after(work, lambda: self._end(call, outer, holds))

    def _end(self, call: _Call, outer: _Call | None, holds: list[_Call]) -> None:
        if call in holds:
            holds.remove(call)
        self._leave(call)
        if outer is not None and outer not in self._inside:
            self._enter(outer)

    def _enter(self, call: _Call) -> None:
        self._alone(self._queue_up, call)
        while not call.admitted.wait(timeout=0.05):
            checkpoint()

    def _leave(self, call: _Call) -> None:
        self._alone(self._take_out, call)

    def _queue_up(self, call: _Call) -> None:
        if call not in self._queue:
            call.admitted = threading.Event()
            self._queue.append(call)
        self._admit()

    def _take_out(self, call: _Call) -> None:
        self._inside.discard(call)
        if call in self._queue:
            self._queue.remove(call)
        self._admit()

    def _alone(self, step: Callable[[_Call], None], call: _Call) -> None:
        """Take a step while no other thread does."""

        def work() -> None:
            self._lock.acquire()
            step(call)

        put_back_after(work, self._release)

    def _release(self) -> None:
        if self._lock._is_owned():  # type: ignore[attr-defined]  # as threading.Condition does
            self._lock.release()

    def _admit(self) -> None:
        """Let calls in, and set the engine that those inside need."""
        while self._queue and (not self._inside or next(iter(self._inside)).name == self._queue[0].name):
            self._inside.add(self._queue[0])
            self._set()
            self._queue.popleft().admitted.set()
        self._set()

    def _set(self) -> None:
        engines = torch.backends.quantized
        if self._inside:
            name = next(iter(self._inside)).name
            if self._outer is None:
                self._outer = engines.engine
            if engines.engine != name:
                engines.engine = name
        elif self._outer is not None:
            engines.engine = self._outer
            self._outer = None

    def forked(self) -> None:
        """In the child of a fork, no other thread goes on: only the calls of this one are inside."""
        self._lock = threading.RLock()
        self._inside &= set(self._own.__dict__.get("holds", []))
        self._queue.clear()
        self._set()


_room = _Room()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_room.forked)


def run_under(name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call ``function`` under the engine ``name``. Packing of weights and some kernels depend on it."""
    return _room.run(name, function, args, kwargs)


def under_engine(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, run under the engine ``name``."""
    return functools.partial(run_under, name, function)


def available() -> tuple[Engine, ...]:
    """The engines of this build of torch."""
    supported = torch.backends.quantized.supported_engines
    return tuple(e for e in (FBGEMM, ONEDNN) if e in supported)
