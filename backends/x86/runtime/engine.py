"""The quantized engine of torch, which is one for the whole process: set it for a while, and put it back."""

from __future__ import annotations

import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

FBGEMM, ONEDNN, QNNPACK = "fbgemm", "onednn", "qnnpack"


class _Room:
    """Threads that want the same engine share the room; threads that want another one wait until it is empty.

    The first thread to enter sets the engine, the last to leave puts the user's engine back. Threads enter in the order
    of their arrival, so that a stream of callers of one engine does not starve the others.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._engine, self._users, self._outer = "", 0, ""
        self._queue: deque[int] = deque()
        self._last = 0
        self._own = threading.local()

    def enter(self, name: str) -> None:
        inside: list[str] = self._own.__dict__.setdefault("engines", [])
        if inside and inside[-1] != name:
            self._exit()  # this thread held another engine; leave() takes it again
        if not inside or inside[-1] != name:
            self._wait(name)
        inside.append(name)

    def leave(self) -> None:
        inside: list[str] = self._own.engines
        name = inside.pop()
        if not inside or inside[-1] != name:
            self._exit()
        if inside and inside[-1] != name:
            self._wait(inside[-1])

    def _wait(self, name: str) -> None:
        with self._changed:
            ticket, self._last = self._last, self._last + 1
            self._queue.append(ticket)
            self._changed.wait_for(lambda: self._queue[0] == ticket and (not self._users or self._engine == name))
            self._queue.popleft()
            self._changed.notify_all()
            if not self._users:
                self._outer = torch.backends.quantized.engine
                torch.backends.quantized.engine = self._engine = name
            self._users += 1

    def _exit(self) -> None:
        with self._changed:
            self._users -= 1
            if not self._users:
                torch.backends.quantized.engine = self._outer
            self._changed.notify_all()


_room = _Room()


@contextmanager
def engine(name: str) -> Iterator[None]:
    """Within it, torch's quantized engine is ``name``. Packing of weights and some kernels depend on it."""
    _room.enter(name)
    try:
        yield
    finally:
        _room.leave()


def under_engine(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, run under the engine ``name``."""

    def run(*args: Any, **kwargs: Any) -> Any:
        _room.enter(name)
        try:
            return function(*args, **kwargs)
        finally:
            _room.leave()

    return run


def available() -> tuple[str, ...]:
    """The engines of this build of torch with kernels for convolutions and linear layers."""
    supported = torch.backends.quantized.supported_engines
    return tuple(e for e in (FBGEMM, ONEDNN) if e in supported)


def swallow_deprecation_warning() -> None:
    """Trigger and hide the warning about quantized dtypes (pytorch#184982) that torch issues once per process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.quint8)
