"""Emitting an expression as LLVM IR."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from llvmlite import ir

from .code import F32, I32, Code, Value, splat, vector
from .expr import Binary, Expr, Fma, Kind, Operand, Output, Param, Sum, Unary
from .functions import FUNCTIONS
from .isa import Isa


@dataclass
class Lanes:
    """fp32 operations on vectors, as a :class:`~.functions.Machine` that emits IR."""

    code: Code
    isa: Isa

    def const(self, value: float) -> Value:
        rounded = struct.unpack("f", struct.pack("f", value))[0]
        return splat(rounded, F32, self.isa.lanes)

    def add(self, a: Value, b: Value) -> Value:
        return self.code.b.fadd(a, b)

    def sub(self, a: Value, b: Value) -> Value:
        return self.code.b.fsub(a, b)

    def mul(self, a: Value, b: Value) -> Value:
        return self.code.b.fmul(a, b)

    def div(self, a: Value, b: Value) -> Value:
        return self.code.b.fdiv(a, b)

    def min(self, a: Value, b: Value) -> Value:
        return self.code.b.select(self.code.b.fcmp_ordered("<", a, b), a, b)

    def max(self, a: Value, b: Value) -> Value:
        return self.code.b.select(self.code.b.fcmp_ordered(">", a, b), a, b)

    def rint(self, a: Value) -> Value:
        return self.code.intrinsic(f"llvm.rint.v{self.isa.lanes}f32", a.type, (a,))

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        return self.code.intrinsic(f"llvm.fma.v{self.isa.lanes}f32", a.type, (a, b, c))

    def ldexp(self, a: Value, n: Value) -> Value:
        b, kind = self.code.b, vector(I32, self.isa.lanes)
        exponent = b.shl(self.isa.round(self.code, n), splat(23, I32, self.isa.lanes))
        return b.bitcast(b.add(b.bitcast(a, kind), exponent), a.type)


@dataclass
class Scope:
    """Where an expression finds its values, for one vector of elements.

    Attributes:
        total: the sum, int32 or fp32; None where there is none.
        operand: gives the fp32 vector of a tensor operand.
        param: gives the fp32 vector of a parameter.
    """

    code: Code
    isa: Isa
    operand: Callable[[int], Value]
    param: Callable[[Param], Value]
    total: Value | None = None
    _known: dict[Expr, Value] = field(default_factory=dict)

    def value(self, expr: Expr) -> Value:
        """The fp32 vector of ``expr``."""
        if expr not in self._known:
            self._known[expr] = self._emit(expr)
        return self._known[expr]

    def integers(self, output: Output) -> Value:
        """The int32 vector of an output of integers, not yet saturated."""
        x, lanes = self.value(output.value), Lanes(self.code, self.isa)
        if output.limited:
            most = 512.0 if output.kind == "u8" else 65536.0
            x = lanes.max(lanes.const(-most), lanes.min(lanes.const(most), x))
        return self.isa.round(self.code, x)

    def _emit(self, expr: Expr) -> Value:
        lanes = Lanes(self.code, self.isa)
        match expr:
            case Sum():
                assert self.total is not None
                if self.total.type.element is F32:
                    return self.total
                return self.code.b.sitofp(self.total, vector(F32, self.isa.lanes))
            case Operand(index):
                return self.operand(index)
            case Param():
                return self.param(expr)
            case Fma(factor, other, term):
                return lanes.fma(self.value(factor), self.value(other), self.value(term))
            case Binary(op, left, right):
                return getattr(lanes, op)(self.value(left), self.value(right))
            case Unary(function, inner):
                return FUNCTIONS[function](lanes, self.value(inner))
        raise NotImplementedError(expr)


def zeros(isa: Isa, kind: Kind = "u8") -> Value:
    """The vector that sums of products of inputs of a kind begin with."""
    return ir.Constant(vector(F32 if kind == "f32" else I32, isa.lanes), None)
