"""Elementwise expressions, and copies from one layout to another."""

from __future__ import annotations

from dataclasses import dataclass

from ..codegen.code import Code
from ..codegen.isa import Isa
from .axes import Axis, Tiles, count, moved, numbers_of
from .blocks import Block
from .epilogue import Epilogue, Store

CHUNK = 2048  # elements of an item of work, if the inner axis is long


@dataclass(frozen=True)
class Elementwise:
    """An expression for each element of a tensor. The tensors of an axis are output, operands.

    Attributes:
        outer: the axes but the innermost.
        size: elements of the innermost axis of the output.
        epilogue: what is computed; it has no parameters per channel.
    """

    outer: tuple[Axis, ...]
    size: int
    epilogue: Epilogue
    isa: Isa

    def __repr__(self) -> str:
        """What the code depends on: not on the size of a long axis."""
        return f"Elementwise({self.axes}, {self.block}, {self.epilogue}, {self.isa})"

    @property
    def block(self) -> Block:
        """Elements that are computed at once."""
        most = self.epilogue.together
        vectors = next((v for v in (4, 2, 1) if v <= most and v * self.isa.lanes <= self.size), 1)
        return Block(vectors, min(vectors * self.isa.lanes, self.size))

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The outer axes, and chunks of the inner one."""
        steps = tuple(e.step for e in self.epilogue.elements)
        whole = self.block.valid * max(1, CHUNK // self.block.valid)
        return *self.outer, Axis(self.size, steps, min(whole, self.size), self.size > whole)

    @property
    def items(self) -> int:
        return count(self.axes)

    @property
    def numbers(self) -> tuple[int, ...]:
        """What is read at run time."""
        return numbers_of(self.axes)

    def emit(self, name: str) -> str:
        """The kernel as IR. Arguments: output, operands, scalars."""
        c = Code(name)
        tensors = [c.pointer(i) for i in range(1 + len(self.epilogue.operands))]
        store = Store(c, self.isa, self.epilogue, c.pointer(0), c.pointer(len(tensors)))
        inner = Axis(self.axes[-1].tile, self.axes[-1].moves, self.block.valid)
        tiles = Tiles(c, self.axes)
        with c.loop(c.low, c.high) as item:
            at, _ = tiles.locate(item, tensors)
            with c.loop(0, inner.tiles) as tile:
                store.block(None, moved(c, at, inner.start(c, tile, inner.size - inner.tile), inner.moves), self.block)
        return c.finish()
