"""Give freed memory back to the system."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache
from typing import Any

from torch import Tensor

_LARGE = 2**20  # elements


def release_memory() -> None:
    """Give freed memory back, where the C library can (glibc). It keeps what lies between memory that is in use."""
    trim = _trim()
    if trim is not None:
        trim(0)


def release_after(weights: Iterable[Tensor]) -> None:
    """:func:`release_memory` after work on ``weights`` that took several times their memory, if one is large."""
    if any(weight.numel() > _LARGE for weight in weights):
        release_memory()


@lru_cache
def _trim() -> Callable[[int], Any] | None:
    with suppress(OSError, AttributeError, TypeError):  # of systems without a C library to ask
        found: Callable[[int], Any] = ctypes.CDLL(None).malloc_trim
        return found
    return None
