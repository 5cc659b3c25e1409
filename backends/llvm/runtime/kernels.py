"""Kernels by what they compute: each is compiled once, and kept on disk."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from ....compiler.core.locks import process_lock
from ....compiler.core.progress import progress
from .cpu import Cpu
from .jit import compile_ir
from .object_cache import ObjectCache

KEPT = 2048  # kernels whose code stays in memory


class Kernel(Protocol):
    """A description of shapes that emits its code; two whose repr() is the same have the same code."""

    @property
    def items(self) -> int:
        """Units of work."""
        ...

    @property
    def numbers(self) -> tuple[int, ...]:
        """What the code reads at run time; its repr() does not tell them."""
        ...

    def emit(self, name: str) -> str:
        """The code as IR: ``void name(ptr arguments, i64 first, i64 last)``."""
        ...


_LOCK = process_lock()
_OBJECTS: OrderedDict[tuple[Cpu, str], bytes] = OrderedDict()


def kernel_name(kernel: Kernel) -> str:
    """A name that is the same for kernels of the same code, and in every process."""
    return f"{type(kernel).__name__.lower()}_{hashlib.sha256(repr(kernel).encode()).hexdigest()[:32]}"


def object_code(kernels: Iterable[Kernel], cpu: Cpu) -> Mapping[str, bytes]:
    """The object code of kernels by name: from memory, from disk, or compiled."""
    named, cache = {kernel_name(kernel): kernel for kernel in kernels}, ObjectCache(cpu)
    with _LOCK:
        found = {name: _OBJECTS.get((cpu, name)) or cache.read(name) for name in named}
        found |= _compiled({name: named[name] for name, code in found.items() if code is None}, cpu, cache)
        known = {name: code for name, code in found.items() if code is not None}
        _OBJECTS.update({(cpu, name): code for name, code in known.items()})
        while len(_OBJECTS) > KEPT:
            _OBJECTS.popitem(last=False)
        return known


def _compiled(kernels: Mapping[str, Kernel], cpu: Cpu, cache: ObjectCache) -> dict[str, bytes]:
    """Compile kernels: a thread of ours compiles one while the next one is written."""
    with ThreadPoolExecutor(1) as compiler:
        jobs = {
            name: compiler.submit(compile_ir, kernel.emit(name), cpu)
            for name, kernel in progress(kernels.items(), "generate code", "kernel", len(kernels))
        }
        made = {name: job.result() for name, job in jobs.items()}
    for name, code in made.items():
        cache.write(name, code)
    return made
