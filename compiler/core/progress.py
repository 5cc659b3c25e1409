"""What a long call shows: progress bars, and the decisions in the log.

Bars show on a terminal only, unless ``verbose`` says otherwise. Decisions go to the logger ``fxquant`` at INFO.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from tqdm import tqdm

from .errors import ConfigError
from .interrupts import checkpoint
from .locks import process_lock

Item = TypeVar("Item")

log = logging.getLogger("fxquant")
_verbose: ContextVar[bool | None] = ContextVar("fxquant_verbose", default=None)


@contextmanager
def verbosity(verbose: bool | None) -> Iterator[None]:
    """Within it, show bars and decisions as ``verbose`` asks: True always, False never, None bars on a terminal.

    Raises:
        ConfigError: ``verbose`` is none of these.
    """
    if verbose is not None and not isinstance(verbose, bool):
        raise ConfigError(f"verbose is {verbose!r}; it must be True, False or None.")
    if verbose is None:  # an outer call has decided
        yield
        return
    token = _verbose.set(verbose)
    level, handler = log.level, _Lines() if verbose and not log.hasHandlers() else None
    if handler is not None:
        handler.setFormatter(logging.Formatter("fxquant: %(message)s"))
        log.addHandler(handler)
    if verbose and log.getEffectiveLevel() > logging.INFO:
        log.setLevel(logging.INFO)
    try:
        yield
    finally:
        _verbose.reset(token)
        log.setLevel(level)
        if handler is not None:
            log.removeHandler(handler)


def progress(items: Iterable[Item], stage: str, unit: str = "it", total: int | None = None) -> Iterator[Item]:
    """``items``, with a bar that names the stage. The bar is gone when the stage is over."""
    with progress_bar(stage, unit, total) as bar:
        for item in items:
            checkpoint()
            yield item
            bar.update()


def progress_bar(stage: str, unit: str = "it", total: int | None = None, bar_format: str | None = None) -> tqdm[Any]:
    """A bar that the caller updates; use it in a ``with``."""
    return _Bar(desc=stage, total=total, unit=unit, bar_format=bar_format, disable=_hidden(), leave=False)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Show the name of a stage that has no steps to count, and its seconds."""
    with progress_bar(name, bar_format="{desc}: {elapsed}"):
        yield


class _Bar(tqdm):  # type: ignore[type-arg]
    """A bar with a lock of its own: other bars of the process cannot be left locked by ours."""

    monitor_interval = 0  # else tqdm starts a thread, which stays


_Bar.set_lock(process_lock())


class _Lines(logging.Handler):
    """Writes records to stderr without breaking a bar."""

    def emit(self, record: logging.LogRecord) -> None:
        _Bar.write(self.format(record), file=sys.stderr)


def _hidden() -> bool | None:
    """What tqdm takes: None hides a bar that would not be on a terminal."""
    verbose = _verbose.get()
    return None if verbose is None else not verbose
