"""Kernels by what they compute: each is compiled once in a process."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Mapping
from typing import Protocol

from .cpu import Cpu
from .jit import compile_ir


class Kernel(Protocol):
    """What :mod:`..kernels` has: two that are equal have the same code."""

    @property
    def items(self) -> int:
        """Units of work."""
        ...

    def emit(self, name: str) -> str:
        """The code as IR: ``void name(ptr arguments, i64 first, i64 last)``."""
        ...


_LOCK = threading.Lock()
_OBJECTS: dict[tuple[Cpu, str], bytes] = {}


def kernel_name(kernel: Kernel) -> str:
    """A name that is the same for equal kernels, and in every process."""
    return f"{type(kernel).__name__.lower()}_{hashlib.sha256(repr(kernel).encode()).hexdigest()[:16]}"


def object_code(kernels: Iterable[Kernel], cpu: Cpu) -> Mapping[str, bytes]:
    """The object code of kernels by name."""
    found = {}
    for kernel in kernels:
        name = kernel_name(kernel)
        with _LOCK:
            if (cpu, name) not in _OBJECTS:
                _OBJECTS[cpu, name] = compile_ir(kernel.emit(name), cpu)
            found[name] = _OBJECTS[cpu, name]
    return found
