"""Signals for the tests of this folder."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest


@pytest.fixture(autouse=True)
def _ctrl_c() -> Iterator[None]:
    """A process that was started in the background of a shell ignores Ctrl-C."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)


@pytest.fixture
def timeouts() -> Iterator[Callable[[], None]]:
    """A handler of SIGALRM that raises; calls of the result send the signal."""

    def expired(number: int, frame: object) -> None:
        raise TimeoutError("too slow")

    old = signal.signal(signal.SIGALRM, expired)
    yield lambda: os.kill(os.getpid(), signal.SIGALRM)
    signal.signal(signal.SIGALRM, old)
