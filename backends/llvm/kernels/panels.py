"""Matrices that the plan computes, laid out as :mod:`.product` reads them. Their sizes are read at run time."""

from __future__ import annotations

from dataclasses import dataclass

from ..codegen.code import Code, Value
from ..codegen.isa import Isa
from .axes import Axis, Tiles, count, moved, numbers_of
from .columns import ColumnLoops, Columns
from .operands import Element, OperandLoader

ROWS = 16  # of an item of work


@dataclass(frozen=True)
class Panels:
    """From fp32 [groups..., depth, columns] to [groups...][block][depth][lane]. The tensors of an axis are both.

    Attributes:
        outer: the groups.
        depth: rows of a matrix.
        row: bytes from one row to the next in the source.
        element: how the columns lie in the source.
    """

    outer: tuple[Axis, ...]
    depth: int
    row: int
    element: Element
    columns: Columns
    isa: Isa

    def __repr__(self) -> str:
        """What the code depends on."""
        return f"Panels({self.axes}, {self.row}, {self.element}, {self.columns}, {self.isa})"

    @property
    def axes(self) -> tuple[Axis, ...]:
        return *self.outer, Axis(self.depth, (0, 0), min(self.depth, ROWS), free=self.depth > ROWS)

    @property
    def items(self) -> int:
        """Units of work."""
        return count(self.axes)

    @property
    def numbers(self) -> tuple[int, ...]:
        """What is read at run time."""
        return *numbers_of(self.axes), self.depth, *self.columns.numbers

    def emit(self, name: str) -> str:
        """The kernel as IR. Arguments: panels, source."""
        c = Code(name)
        pointers = [c.pointer(0), c.pointer(1)]
        tiles = Tiles(c, self.axes)
        place = len(numbers_of(self.axes))
        depth, columns = c.number(place), ColumnLoops(c, self.columns, place + 1)
        with c.loop(c.low, c.high) as item:
            (target, source), indices = tiles.locate(item, pointers)
            start = tiles.start(-1, indices[-1])

            def block(first: Value, vectors: int) -> None:
                panel = c.at(target, c.b.mul(first, c.times(depth, 4)))
                (column,) = moved(c, [source], first, [self.element.step])

                def rows(rest: Value | None) -> None:
                    with c.loop(0, self.axes[-1].tile) as offset:
                        row = c.b.add(start, offset)
                        to = c.at(panel, c.times(row, 4 * self.isa.lanes * vectors))
                        self._row(c, c.at(column, c.times(row, self.row)), to, vectors, rest)

                columns.part(first, vectors, rows)

            columns.each(block)
        return c.finish()

    def _row(self, c: Code, source: Value, target: Value, vectors: int, rest: Value | None) -> None:
        lanes = self.isa.lanes
        for v in range(vectors):
            valid = lanes if rest is None or v < vectors - 1 else rest
            part = OperandLoader(c, self.isa, self.element, c.at(source, v * lanes * self.element.step), 1, valid)
            c.store(part.vector(0), c.at(target, 4 * lanes * v))
