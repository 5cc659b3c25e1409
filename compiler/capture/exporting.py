"""What surrounds a run of ``torch.export``: nothing on the user's terminal, and no branch of torch's own on values."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from torch.nn.modules import transformer

from ..core.interrupts import put_back_after

Result = TypeVar("Result")


class _OtherThreads:
    """A stream that drops what this thread writes, and passes on what other threads write."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._thread else int(self._stream.write(text) or 0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _is_causal(mask: Any, is_causal: bool | None = None, size: int | None = None) -> bool:
    """Without a look at the values of the mask: a causal one gives the same as any other mask with its values."""
    return bool(is_causal)


def exporting(function: Callable[[], Result]) -> Result:
    """What ``function`` returns.

    What it writes to stderr, and what torch logs meanwhile in this thread, is dropped. torch's transformer layers do
    not look at the values of masks meanwhile.
    """
    loggers = [v for k, v in logging.root.manager.loggerDict.items() if k.split(".")[0] == "torch"]
    places = [v for v in loggers if isinstance(v, logging.Logger)]
    stream, thread, detect = sys.stderr, threading.get_ident(), transformer._detect_is_causal_mask

    def of_others(record: logging.LogRecord) -> bool:
        return record.thread != thread

    def work() -> Result:
        sys.stderr = _OtherThreads(stream)
        transformer._detect_is_causal_mask = _is_causal
        for place in places:
            place.addFilter(of_others)
        return function()

    def put_back() -> None:
        sys.stderr = stream
        transformer._detect_is_causal_mask = detect
        for place in places:
            place.removeFilter(of_others)

    return put_back_after(work, put_back)
