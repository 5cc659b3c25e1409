"""Columns of a matrix whose size a kernel reads at run time: blocks of registers, then single registers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..codegen.code import Code, Value, i64


@dataclass(frozen=True)
class Columns:
    """Columns in registers of some lanes; the last register may be filled in part.

    Attributes:
        count: of columns.
        vectors: registers of a block.
    """

    count: int
    vectors: int
    lanes: int

    def __repr__(self) -> str:
        """What the code depends on."""
        return f"Columns({self.vectors}, {self.lanes})"

    @staticmethod
    def of(count: int, most: int, lanes: int) -> Columns:
        """Columns in blocks of at most so many registers."""
        return Columns(count, min(most, -(-count // lanes)), lanes)

    @property
    def registers(self) -> int:
        return -(-self.count // self.lanes)

    @property
    def numbers(self) -> tuple[int, int, int]:
        """What a kernel reads at run time: the blocks, the registers after them, and the columns."""
        return *divmod(self.registers, self.vectors), self.count


class ColumnLoops:
    """Emits loops over columns. Args: the place of their first number among those of the kernel."""

    def __init__(self, c: Code, columns: Columns, place: int) -> None:
        self._c, self._columns = c, columns
        self._blocks, self._singles, self._count = (c.number(place + i) for i in range(3))

    def each(self, emit: Callable[[Value, int], None]) -> None:
        """Emit what is done with the registers from a column on, for blocks and for single registers."""
        c, vectors, lanes = self._c, self._columns.vectors, self._columns.lanes
        with c.loop(0, self._blocks) as index:
            emit(c.times(index, vectors * lanes), vectors)
        if vectors > 1:
            after = c.times(self._blocks, vectors * lanes)
            with c.loop(0, self._singles) as index:
                emit(c.b.add(after, c.times(index, lanes)), 1)

    def part(self, first: Value, vectors: int, emit: Callable[[Value | None], None]) -> None:
        """Emit code for registers that are full, and with the columns of the last one for those that are not."""
        c, lanes = self._c, self._columns.lanes
        left = c.b.sub(self._count, first)
        with c.b.if_else(c.b.icmp_signed(">=", left, i64(vectors * lanes))) as (then, otherwise):
            with then:
                emit(None)
            with otherwise:
                emit(c.b.sub(left, i64((vectors - 1) * lanes)))
