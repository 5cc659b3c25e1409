"""The instruction sets, and which of them this CPU has."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from ..runtime.cpu import Cpu, host
from .isa import Avx2, Avx512, Avx512Vnni, AvxVnni, Isa


def _generic(cpu: Cpu) -> Isa:
    return Isa("generic", cpu, lanes=4, registers=16, products=16)


def _avx2(cpu: Cpu) -> Isa:
    return Avx2("avx2", cpu, lanes=8, registers=16, products=32)


def _avx_vnni(cpu: Cpu) -> Isa:
    return AvxVnni("avx_vnni", cpu, lanes=8, registers=16, products=64)


def _avx512(cpu: Cpu) -> Isa:
    return Avx512("avx512", cpu, lanes=16, registers=32, products=32)


def _avx512_vnni(cpu: Cpu) -> Isa:
    return Avx512Vnni("avx512_vnni", cpu, lanes=16, registers=32, products=64)


# Best first: what the CPU must have.
_KNOWN: dict[str, tuple[Callable[[Cpu], Isa], frozenset[str]]] = {
    "avx512_vnni": (_avx512_vnni, frozenset(("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni"))),
    "avx_vnni": (_avx_vnni, frozenset(("avx2", "fma", "avxvnni"))),
    "avx512": (_avx512, frozenset(("avx512f", "avx512bw", "avx512vl", "avx512dq"))),
    "avx2": (_avx2, frozenset(("avx2", "fma"))),
    "generic": (_generic, frozenset()),
}


@cache
def available() -> tuple[Isa, ...]:
    """The instruction sets of this CPU, best first."""
    cpu, features = host()
    return tuple(make(cpu) for make, needs in _KNOWN.values() if needs <= features)
