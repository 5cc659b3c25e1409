"""The threads of torch: the OpenMP runtime that it has loaded."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class OpenMP:
    """Addresses of functions of libgomp, and of sched_yield."""

    parallel: int
    thread_number: int
    thread_count: int
    sched_yield: int


@cache
def openmp() -> OpenMP | None:
    """The libgomp of torch; None where torch has another runtime, and kernels run on the calling thread alone."""
    folder = Path(torch.__file__).parent
    found = [*folder.glob("lib/libgomp*"), *folder.parent.glob("torch.libs/libgomp*")]
    for path in found:
        try:
            library = ctypes.CDLL(str(path))
            names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
            parallel, number, count = (_address(getattr(library, name)) for name in names)
            gives_way = _address(ctypes.CDLL(None).sched_yield)
        except (OSError, AttributeError):
            continue
        return OpenMP(parallel, number, count, gives_way)
    return None


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0
