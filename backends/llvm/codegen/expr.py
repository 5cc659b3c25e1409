"""What a kernel computes on the values that it loaded or summed, before it stores: an expression in fp32.

An expression has no numbers in it, only places of parameters, so that layers of one shape share a kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["u8", "s16", "f32", "i64"]  # i64: indices, which no expression reads


@dataclass(frozen=True)
class Expr:
    """An expression, one value per element of the output."""


@dataclass(frozen=True)
class Sum(Expr):
    """The sum of a contraction or pool, as fp32."""


@dataclass(frozen=True)
class Operand(Expr):
    """An element of the tensor operand ``index``: the integer of a quantized tensor, or a fp32 value."""

    index: int


@dataclass(frozen=True)
class Param(Expr):
    """The parameter ``index``: fp32, one for each channel or one in all."""

    index: int
    per_channel: bool


@dataclass(frozen=True)
class Binary(Expr):
    """``left op right``."""

    op: Literal["add", "sub", "mul", "div", "min", "max"]
    left: Expr
    right: Expr


@dataclass(frozen=True)
class Fma(Expr):
    """``factor * other + term``, rounded once."""

    factor: Expr
    other: Expr
    term: Expr


@dataclass(frozen=True)
class Unary(Expr):
    """A function of one value, of :mod:`.functions`."""

    function: str
    value: Expr


@dataclass(frozen=True)
class Output:
    """What is stored.

    Attributes:
        kind: integers are rounded half to even and saturated.
        limited: ``value`` may lie outside of int32, and is clamped first.
    """

    value: Expr
    kind: Kind
    limited: bool = False
