"""A row that a kernel holds in memory of its own, in pieces of sixteen elements.

Sums are taken in sixteen parts, whatever the width of a register, so that every instruction set rounds alike.
"""

from __future__ import annotations

from collections.abc import Callable

from ..codegen.code import F32, Code, Value, i64, vector
from ..codegen.emit import Lanes
from ..codegen.isa import Isa

PARTS = 16
Reader = Callable[[Value, int, Value | int], Value]  # piece, register of it, how many of its lanes are valid -> values


class HeldRow:
    """Emits what is done with a row.

    Args:
        size: elements; a value if only the run tells.
        capacity: elements that there is memory for.
    """

    def __init__(self, c: Code, isa: Isa, size: Value | int, capacity: int) -> None:
        self.c, self.isa, self.size = c, isa, size
        self.m, self.kind = Lanes(c, isa), vector(F32, isa.lanes)
        self.parts = PARTS // isa.lanes
        self.memory = c.array(F32, capacity)

    def pieces(self, width: int, emit: Callable[[Value, Value | int], None]) -> None:
        """Emit what is done with each piece of a row, and with the rest, which has fewer elements."""
        c = self.c
        if isinstance(self.size, int):
            whole, rest = divmod(self.size, width)
            if whole:
                with c.loop(0, whole) as index:
                    emit(index, width)
            if rest:
                emit(i64(whole), rest)
            return
        pieces, left = c.divide(self.size, width)
        with c.loop(0, pieces) as index:
            emit(index, width)
        with c.b.if_then(c.b.icmp_signed(">", left, i64(0))):
            emit(pieces, left)

    def scale(self, factor: Value) -> None:
        """Multiply all elements."""

        def scaled(piece: Value, valid: Value | int) -> None:
            for part in range(self.parts):
                self.hold(self.m.mul(self.held(piece, part), factor), piece, part)

        self.pieces(PARTS, scaled)

    def reduced(self, op: str, start: float, of: Reader, outside: float) -> Value:
        """The sum or maximum over a row, in all lanes.

        Args:
            of: gives a part of a row, of which some lanes are valid.
            outside: stands for what is past the end.
        """
        c, m, lanes = self.c, self.m, self.isa.lanes
        combine = getattr(m, op)
        totals = [c.variable(self.kind, m.const(start)) for _ in range(self.parts)]

        def step(piece: Value, valid: Value | int) -> None:
            for part in range(self.parts):
                value = self._inside(of, piece, part, valid, m.const(outside))
                c.b.store(combine(c.b.load(totals[part]), value), totals[part])

        self.pieces(PARTS, step)
        values = [c.b.load(t) for t in totals]
        width = PARTS  # halves are combined until one lane is left
        while len(values) > 1:
            half = len(values) // 2
            values = [combine(a, b) for a, b in zip(values[:half], values[half:], strict=True)]
            width //= 2
        value = values[0]
        while width > 1:
            width //= 2
            value = combine(value, c.take(value, [(i + width) % lanes for i in range(lanes)]))
        return c.take(value, [0] * lanes)

    def _inside(self, of: Reader, piece: Value, part: int, valid: Value | int, outside: Value) -> Value:
        """A part of a piece, with ``outside`` in the lanes after those that are valid."""
        c, lanes = self.c, self.isa.lanes
        if not isinstance(valid, int):
            left = c.b.sub(valid, i64(part * lanes))
            return c.b.select(c.first_lanes(left, lanes), of(piece, part, left), outside)
        inside = max(0, min(lanes, valid - part * lanes))
        value = of(piece, part, inside) if inside else outside
        return c.shuffle(value, outside, [i if i < inside else lanes + i for i in range(lanes)])

    def _place(self, piece: Value, part: int) -> Value:
        return self.c.at(self.memory, self.c.b.add(self.c.times(piece, 4 * PARTS), i64(4 * part * self.isa.lanes)))

    def held(self, piece: Value, part: int) -> Value:
        return self.c.load(self._place(piece, part), self.kind)

    def hold(self, value: Value, piece: Value, part: int) -> None:
        self.c.store(value, self._place(piece, part))
