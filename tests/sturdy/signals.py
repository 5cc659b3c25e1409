"""Signals to the process of the tests."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def press() -> None:
    """Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)


@contextmanager
def dropped(kind: type[BaseException]) -> Iterator[list[BaseException | None]]:
    """The exceptions of ``kind`` that handlers raised where Python drops them.

    That is in ``__del__`` and in callbacks of the garbage collector, of any package. Nobody can catch them there.
    """
    found: list[BaseException | None] = []
    before = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if issubclass(unraisable.exc_type, kind):
            found.append(unraisable.exc_value)
        else:
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield found
    finally:
        sys.unraisablehook = before
