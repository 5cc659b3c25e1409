"""Rows of a table by their index, and sums or means of bags of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from ..codegen.code import F16, F32, I8, I32, I64, Code, Value, i64, splat, vector
from ..codegen.emit import Lanes
from ..codegen.isa import Isa

RowKind = Literal["f32", "f16", "s8", "s4"]
TOGETHER = 8  # registers of a row that are summed at once
PAIR = 16  # elements of s4 that are the low halves of bytes; as many after them are the high halves


@dataclass(frozen=True)
class Gather:
    """fp32 [bags, size] from a table.

    Attributes:
        rows: what a row of the table holds; integers are followed by their scale and zero point in fp32.
        size: elements of a row.
        stride: bytes from one row to the next.
        mode: what becomes of the rows of a bag.
        bags: how many there are.
        bag: indices of a bag.
        padding: an index that counts for nothing; -1: none.
    """

    rows: RowKind
    size: int
    stride: int
    mode: Literal["one", "sum", "mean"]
    bags: int
    bag: int
    padding: int
    isa: Isa

    def __repr__(self) -> str:
        """What the code depends on."""
        return f"Gather({self.rows}, {self.size}, {self.stride}, {self.mode}, {self.isa})"

    @property
    def items(self) -> int:
        """Units of work."""
        return self.bags

    @property
    def numbers(self) -> tuple[int, ...]:
        """What is read at run time."""
        return self.bag, self.padding

    def emit(self, name: str) -> str:
        """The kernel as IR. Arguments: indices as int64 [bags, bag], table, output."""
        return _Emitter(self, Code(name)).emit()


class _Emitter:
    def __init__(self, gather: Gather, code: Code) -> None:
        self.g, self.c, self.isa = gather, code, gather.isa
        self.indices, self.table, self.output = (code.pointer(i) for i in range(3))
        self.bag, self.padding = code.number(0), code.number(1)
        self.m, self.kind = Lanes(code, self.isa), vector(F32, self.isa.lanes)

    def emit(self) -> str:
        c, g, lanes = self.c, self.g, self.isa.lanes
        registers = -(-g.size // lanes)
        with c.loop(c.low, c.high) as item:
            indices = c.at(self.indices, c.b.mul(item, c.times(self.bag, 8)))
            output = c.at(self.output, c.times(item, 4 * g.size))
            for first in range(0, registers, TOGETHER):
                group = range(first, min(first + TOGETHER, registers))
                for register, value in zip(group, self._values(indices, group), strict=True):
                    valid = min(g.size - register * lanes, lanes)
                    c.store_first(value, c.at(output, 4 * lanes * register), valid)
        return c.finish()

    def _values(self, indices: Value, group: range) -> list[Value]:
        """The output in some registers."""
        c, m = self.c, self.m
        if self.g.mode == "one":
            return self._row(c.load(indices, I64), group)
        sums = [c.variable(self.kind, m.const(0.0)) for _ in group]
        found = c.variable(I64, i64(0))
        with c.loop(0, self.bag) as place:
            index = c.load(c.at(indices, c.times(place, 8)), I64)
            with c.b.if_then(c.b.icmp_signed("!=", index, self.padding)):
                for slot, value in zip(sums, self._row(index, group), strict=True):
                    c.b.store(m.add(c.b.load(slot), value), slot)
                c.b.store(c.b.add(c.b.load(found), i64(1)), found)
        values = [c.b.load(slot) for slot in sums]
        if self.g.mode == "sum":
            return values
        count = c.b.load(found)
        count = c.b.select(c.b.icmp_signed(">", count, i64(1)), count, i64(1))
        divisor = c.repeat(c.b.sitofp(count, F32), self.isa.lanes)
        return [m.div(value, divisor) for value in values]

    def _row(self, index: Value, group: range) -> list[Value]:
        """Some registers of a row in fp32."""
        c, g, m, lanes = self.c, self.g, self.m, self.isa.lanes
        row = c.at(self.table, c.times(index, g.stride))
        if g.rows == "f32":
            return [c.load(c.at(row, 4 * lanes * r), self.kind) for r in group]
        if g.rows == "f16":
            halves = (c.load(c.at(row, 2 * lanes * r), vector(F16, lanes)) for r in group)
            return [c.b.fpext(half, self.kind) for half in halves]
        scale, zero = (c.repeat(c.load(c.at(row, g.stride - back), F32), lanes) for back in (8, 4))
        integers = map(partial(self._integers, row), group)
        return [m.mul(m.sub(c.b.sitofp(i, self.kind), zero), scale) for i in integers]

    def _integers(self, row: Value, register: int) -> Value:
        c, lanes = self.c, self.isa.lanes
        wide, narrow = vector(I32, lanes), vector(I8, lanes)
        if self.g.rows == "s8":
            return c.b.sext(c.load(c.at(row, lanes * register), narrow), wide)
        pair, place = divmod(register * lanes, 2 * PAIR)
        high, within = divmod(place, PAIR)
        packed = c.load(c.at(row, pair * PAIR + within), narrow)
        half = c.b.lshr(packed, splat(4, I8, lanes)) if high else c.b.and_(packed, splat(15, I8, lanes))
        return c.b.sub(c.b.zext(half, wide), splat(8, I32, lanes))
