"""Matrices that the plan computes, laid out as :mod:`.gemm` reads weights."""

from __future__ import annotations

from dataclasses import dataclass

from ..codegen.code import Code, Value
from ..codegen.isa import Isa
from .axes import Axis, Tiles, count, numbers_of
from .blocks import Block, choose_block
from .operands import Element, OperandLoader

ROWS = 16  # of an item of work


@dataclass(frozen=True)
class Panels:
    """From fp32 [groups..., depth, channels] to [groups...][block][depth][lane]. The tensors of an axis are both.

    Attributes:
        outer: the groups.
        depth: rows of a matrix.
        row: bytes from one row to the next in the source.
        element: how the columns lie in the source.
        blocks: of columns.
    """

    outer: tuple[Axis, ...]
    depth: int
    row: int
    element: Element
    blocks: tuple[Block, ...]
    isa: Isa

    @property
    def axes(self) -> tuple[Axis, ...]:
        return *self.outer, Axis(len(self.blocks), (0, 0)), Axis(self.depth, (0, 0), min(self.depth, ROWS))

    @property
    def items(self) -> int:
        """Units of work."""
        return count(self.axes)

    @property
    def numbers(self) -> tuple[int, ...]:
        """What is read at run time."""
        return numbers_of(self.axes)

    def emit(self, name: str) -> str:
        """The kernel as IR. Arguments: panels, source."""
        c = Code(name)
        pointers = [c.pointer(0), c.pointer(1)]
        tiles = Tiles(c, self.axes)
        with c.loop(c.low, c.high) as item:
            (target, source), indices = tiles.locate(item, pointers)
            start = tiles.start(-1, indices[-1])

            def block(index: Value, which: Block) -> None:
                first = c.times(index, self.blocks[0].vectors * self.isa.lanes)
                panel = c.at(target, c.times(first, 4 * self.depth))
                column = c.at(source, c.times(first, self.element.step))
                with c.loop(0, self.axes[-1].tile) as offset:
                    row = c.b.add(start, offset)
                    to = c.at(panel, c.times(row, 4 * self.isa.lanes * which.vectors))
                    self._row(c, c.at(column, c.times(row, self.row)), to, which)

            choose_block(c, indices[-2], self.blocks, block)
        return c.finish()

    def _row(self, c: Code, source: Value, target: Value, block: Block) -> None:
        lanes = self.isa.lanes
        for v in range(block.vectors):
            valid = min(block.valid - v * lanes, lanes)
            at = c.at(source, v * lanes * self.element.step)
            part = OperandLoader(c, self.isa, self.element, at, 1, valid)
            c.store(part.vector(0), c.at(target, 4 * lanes * v))
