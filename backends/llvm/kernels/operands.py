"""Tensor operands of an expression: loading their elements as fp32."""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from ..codegen.code import F32, I8, I16, I32, Code, Value, i64, vector
from ..codegen.expr import Kind, Param
from ..codegen.isa import Isa

BYTES: dict[Kind, int] = {"u8": 1, "s16": 2, "f32": 4, "i64": 8}


@dataclass(frozen=True)
class Element:
    """How the elements of a tensor lie along the channels.

    Attributes:
        kind: what an element is.
        step: bytes from one channel to the next; 0: one element is read for all channels.
        bounded: nothing may be read past the last channel. Memory of ours is longer than its tensors, that of a user is
            not.
    """

    kind: Kind
    step: int
    bounded: bool = False

    @property
    def contiguous(self) -> bool:
        return self.step == BYTES[self.kind]


def pack_groups(vectors: int, most: int) -> list[tuple[int, int]]:
    """(first, count) of the registers that are packed together: ``most`` or fewer."""
    groups, first = [], 0
    for count in (n for n in (4, 2, 1) if n <= most):
        while first + count <= vectors:
            groups.append((first, count))
            first += count
    return groups


def scalar_param(c: Code, isa: Isa, scalars: Value, which: Param) -> Value:
    """A parameter that is one in all, in every lane."""
    return c.repeat(c.load(c.at(scalars, 4 * which.index), F32), isa.lanes)


@dataclass
class OperandLoader:
    """The fp32 vectors of an operand, at the channels of ``count`` registers that are packed together.

    Attributes:
        valid: how many of these channels there are. A value that is known at run time: of one register.
    """

    code: Code
    isa: Isa
    element: Element
    pointer: Value
    count: int
    valid: int | Value
    _loaded: list[Value] | None = None

    def vector(self, place: int) -> Value:
        """The fp32 vector of the register ``place``."""
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded[place]

    def _load(self) -> list[Value]:
        c, lanes = self.code, self.isa.lanes
        kind = vector(F32, lanes)
        size = lanes * self.count
        if self.element.step == 0:
            return [c.repeat(self._scalar(self.pointer), lanes)] * self.count
        if not isinstance(self.valid, int):
            return [self._masked(self.valid)]
        if not self.element.contiguous or (self.element.bounded and self.valid < size):
            return [self._gathered(v) for v in range(self.count)]
        if self.element.kind == "f32":
            return [c.load(c.at(self.pointer, 4 * lanes * v), kind) for v in range(self.count)]
        if self.element.kind == "s16":
            words, order = c.load(self.pointer, vector(I16, size)), self.isa.channel_order(self.count)
            parts = (c.take(words, order[v * lanes : (v + 1) * lanes]) for v in range(self.count))
            return [c.b.sitofp(c.b.sext(part, vector(I32, lanes)), kind) for part in parts]
        packed = c.load(self.pointer, vector(I8, size))
        return [c.b.sitofp(v, kind) for v in self.isa.unpack(c, packed, self.count)]

    def _masked(self, valid: Value) -> Value:
        """The first lanes, zeros after them. Nothing is read past them."""
        c, lanes = self.code, self.isa.lanes
        if self.element.kind == "f32" and self.element.contiguous:
            return c.load_first(self.pointer, vector(F32, lanes), valid)
        value = ir.Constant(vector(F32, lanes), None)
        for lane in range(lanes):
            index = c.smaller(i64(lane), c.b.sub(valid, i64(1)))
            scalar = self._scalar(c.at(self.pointer, c.times(index, self.element.step)))
            value = c.b.insert_element(value, scalar, ir.Constant(I32, lane))
        return value

    def _scalar(self, pointer: Value) -> Value:
        if self.element.kind == "f32":
            return self.code.load(pointer, F32)
        if self.element.kind == "s16":
            return self.code.b.sitofp(self.code.load(pointer, I16), F32)
        return self.code.b.uitofp(self.code.load(pointer, I8), F32)

    def _gathered(self, place: int) -> Value:
        """One element after the other."""
        c, lanes = self.code, self.isa.lanes
        value = ir.Constant(vector(F32, lanes), None)
        assert isinstance(self.valid, int)
        for lane in range(min(lanes, self.valid - place * lanes)):
            scalar = self._scalar(c.at(self.pointer, (place * lanes + lane) * self.element.step))
            value = c.b.insert_element(value, scalar, ir.Constant(I32, lane))
        return value
