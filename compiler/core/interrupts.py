"""Signals wait while fxquant works, and are delivered where nothing is half done.

A handler that raises (Ctrl-C raises KeyboardInterrupt) may run between any two lines, also in a ``finally`` or in the
``__exit__`` of a context manager, which then leaves the process changed. So the handlers of the main thread are called
at checkpoints only: between batches, ops and steps. A user's function runs with its signals delivered at once.
"""

from __future__ import annotations

import functools
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

PATIENCE = 2.0  # seconds after which a second signal of the same kind is delivered at once

_FAULTS = ("SIGSEGV", "SIGFPE", "SIGBUS", "SIGILL", "SIGABRT", "SIGTRAP", "SIGSYS", "SIGKILL", "SIGSTOP")
_SIGNALS = sorted(signal.valid_signals() - {getattr(signal, name, None) for name in _FAULTS})


class _Raised(BaseException):
    """Carries what a handler raised through ``except Exception`` to the end of the held function."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class _Hold:
    """Takes the place of the handlers of the main thread.

    Attributes:
        handlers: the user's handlers.
        pending: signals that wait, with the time of the first of their kind.
        immediate: signals are delivered at once: a user's function runs.
        ended: fxquant is done. Whoever saved our handler meanwhile may still have it.
    """

    def __init__(self) -> None:
        self.handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self.pending: dict[int, float] = {}
        self.immediate = self.ended = False

    def install(self) -> None:
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler):
                self.handlers[number] = handler
                signal.signal(number, self._receive)

    def remove(self) -> None:
        """Put the user's handlers back. May be called again."""
        for number, handler in self.handlers.items():
            if signal.getsignal(number) == self._receive:
                signal.signal(number, handler)
        self.ended = True

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.ended:
            self.handlers[number](number, frame)
            return
        now = time.monotonic()
        if not self.immediate and now - self.pending.setdefault(number, now) < PATIENCE:
            return
        self.pending.pop(number, None)
        try:
            self.handlers[number](number, frame)
        except Exception as error:
            if self.immediate:
                raise
            raise _Raised(error) from error

    def deliver(self) -> None:
        """Call the handlers of all signals that wait, also if one of them raises."""
        if self.pending:
            number, _ = self.pending.popitem()
            try:
                self.handlers[number](number, sys._getframe())
            finally:
                self.deliver()

    def deliver_inside(self) -> None:
        """The same where our own code is around, which must not take what a handler raises for an error of a model."""
        try:
            self.deliver()
        except Exception as error:
            raise _Raised(error) from error


_hold: _Hold | None = None  # of the main thread


def put_back_after(function: Callable[[], R], put_back: Callable[[], None]) -> R:
    """Call ``function``, then ``put_back``, twice: an exception may have cut the first short."""
    try:
        try:
            return function()
        finally:
            put_back()
    finally:
        put_back()


def held(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, during which signals wait for a checkpoint or for its end. In other threads there are none."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if not _in_main_thread():
            return function(*args, **kwargs)
        return _outermost(function, args, kwargs) if _hold is None else _inner(_hold, function, args, kwargs)

    return run


def _outermost(function: Callable[..., R], args: Any, kwargs: Any) -> R:
    hold = _Hold()

    def work() -> R:
        global _hold
        _hold = hold
        hold.install()
        return function(*args, **kwargs)

    def put_back() -> None:
        global _hold
        _hold = None
        hold.remove()

    try:
        return put_back_after(work, put_back)
    except _Raised as raised:
        raise raised.error from None
    finally:
        hold.deliver()


def _inner(hold: _Hold, function: Callable[..., R], args: Any, kwargs: Any) -> R:
    """Called by a user's function, or by another held one."""
    before = hold.immediate
    try:
        hold.immediate = False
        return function(*args, **kwargs)
    except _Raised as raised:
        if before:
            raise raised.error from None
        raise
    finally:
        hold.immediate = before
        if before:
            hold.deliver()


def interruptible(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a user's function: signals are delivered at once."""
    if _hold is None or not _in_main_thread():
        return function(*args, **kwargs)
    hold = _hold
    hold.deliver_inside()

    def call() -> R:
        hold.immediate = True
        return function(*args, **kwargs)

    def put_back() -> None:
        hold.immediate = False

    return put_back_after(call, put_back)


def checkpoint() -> None:
    """A place where a signal may be delivered: nothing is half done here."""
    if _hold is not None and _hold.pending and _in_main_thread():
        _hold.deliver_inside()


def _in_main_thread() -> bool:
    return threading.get_ident() == threading.main_thread().ident
