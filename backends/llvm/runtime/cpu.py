"""The CPU, as LLVM sees it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import llvmlite.binding as llvm


@dataclass(frozen=True)
class Cpu:
    """What LLVM compiles for."""

    name: str
    features: str


@cache
def host() -> tuple[Cpu, frozenset[str]]:
    """This CPU, and the names of its features."""
    features = llvm.get_host_cpu_features()
    return Cpu(llvm.get_host_cpu_name(), features.flatten()), frozenset(n for n, has in features.items() if has)
