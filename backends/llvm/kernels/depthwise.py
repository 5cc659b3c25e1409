"""Depthwise convolutions: channels in lanes, a bundle of columns of a row interleaved for one instruction.

A bundle is the four columns of u8, two of s16, or one of fp32 that an instruction multiplies in a lane. Its elements
are interleaved once, and serve every output whose window has any of the columns: the weights are shifted, and zero
where a column is outside of the window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from ..codegen.code import F32, I8, I16, I32, Code, Value, vector
from ..codegen.emit import zeros
from ..codegen.expr import Kind
from ..codegen.isa import Isa
from .axes import Axis, Tiles, count, moved, numbers_of
from .blocks import Block, blocks_of, choose_block
from .epilogue import Epilogue, Store
from .operands import BYTES


@dataclass(frozen=True)
class Use:
    """A bundle in an output: ``weights[i]`` is the tap of the column ``i`` of the bundle, or -1."""

    output: int
    bundle: int
    weights: tuple[int, ...]


@dataclass(frozen=True)
class Depthwise:
    """A depthwise convolution. The tensors of an axis are input, output, operands.

    Attributes:
        outer: axes of the output.
        height, width: the axes that tiles are cut from.
        window: taps along height and width.
        rows: bytes from one tap to the next along height, in the input.
        columns: the same along width.
        row_stride, column_stride: taps from one output to the next.
        element: what the input is.
        channels: how many.
        epilogue: what is stored.
    """

    outer: tuple[Axis, ...]
    height: Axis
    width: Axis
    window: tuple[int, int]
    rows: int
    columns: int
    row_stride: int
    column_stride: int
    element: Kind
    channels: int
    epilogue: Epilogue
    isa: Isa

    @property
    def blocks(self) -> list[Block]:
        """Blocks of channels; a row is unpacked for one, two or four registers."""
        *whole, last = blocks_of(self.channels, 4, self.isa.lanes)
        return [*whole, Block(4 if last.vectors == 3 else last.vectors, last.valid)]

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes of an item of work: the width is a loop inside."""
        return *self.outer, self.height, Axis(len(self.blocks), (0,) * len(self.height.moves))

    @property
    def items(self) -> int:
        return count(self.axes)

    @property
    def bundle(self) -> int:
        """Columns of a bundle."""
        return 4 // BYTES[self.element]

    @property
    def bundles(self) -> int:
        """Bundles that a tile reads in a row."""
        return -(-self.used_columns // self.bundle)

    @property
    def used_columns(self) -> int:
        """Columns that a tile reads in a row."""
        return (self.width.tile - 1) * self.column_stride + self.window[1]

    def uses(self) -> Iterator[Use]:
        """How the bundles of a row are used, in the order of the packed weights."""
        for output in range(self.width.tile):
            for bundle in range(self.bundles):
                taps = (self.bundle * bundle + i - output * self.column_stride for i in range(self.bundle))
                weights = tuple(t if 0 <= t < self.window[1] else -1 for t in taps)
                if max(weights) >= 0:
                    yield Use(output, bundle, weights)

    @property
    def numbers(self) -> tuple[int, ...]:
        """What is read at run time."""
        return numbers_of(self.axes)

    def emit(self, name: str) -> str:
        """The kernel as IR. Arguments: input, output, operands, weights, parameters per channel, scalars.

        Weights are [block][row of the window][use][register][lane][column of the bundle].
        """
        return _Emitter(self, Code(name)).emit()


class _Emitter:
    def __init__(self, depthwise: Depthwise, code: Code) -> None:
        self.d, self.c, self.isa = depthwise, code, depthwise.isa
        tensors = 2 + len(depthwise.epilogue.operands)
        self.tensors = [code.pointer(i) for i in range(tensors)]
        self.weights, self.params, self.scalars = (code.pointer(tensors + i) for i in range(3))
        self.uses = list(depthwise.uses())

    def emit(self) -> str:
        d, c = self.d, self.c
        tiles = Tiles(c, d.axes)
        with c.loop(c.low, c.high) as item:
            tensors, indices = tiles.locate(item, self.tensors)
            choose_block(c, indices[-1], d.blocks, partial(self._row, tensors))
        return c.finish()

    def _row(self, tensors: list[Value], index: Value, block: Block) -> None:
        """All tiles along the width."""
        d, c = self.d, self.c
        first = c.times(index, 4 * self.isa.lanes)
        bytes_ = (BYTES[d.element], *(e.step for e in d.epilogue.elements))
        begin = moved(c, tensors, first, bytes_)
        weights = c.at(self.weights, c.times(first, 4 * d.window[0] * len(self.uses)))
        store = Store(c, self.isa, d.epilogue, c.at(self.params, c.times(first, 4 * d.epilogue.params)), self.scalars)
        with c.loop(0, d.width.tiles) as tile:
            start = d.width.start(c, tile, d.width.size - d.width.tile)
            at = moved(c, begin, start, d.width.moves)
            totals = self._sums(at[0], weights, block)
            for r in range(d.height.tile):
                for s in range(d.width.tile):
                    moves = [r * y + s * x for y, x in zip(d.height.moves[1:], d.width.moves[1:], strict=True)]
                    store.block(totals[r][s], [c.at(p, m) for p, m in zip(at[1:], moves, strict=True)], block)

    def _sums(self, source: Value, weights: Value, block: Block) -> list[list[list[Value]]]:
        d, c, lanes = self.d, self.c, self.isa.lanes
        dot, start = self.isa.dot_of(d.element), zeros(self.isa, d.element)
        sums = [[[start] * block.vectors for _ in range(d.width.tile)] for _ in range(d.height.tile)]
        for row in range((d.height.tile - 1) * d.row_stride + d.window[0]):
            bundles = [self._bundle(c.at(source, row * d.rows), i, block) for i in range(d.bundles)]
            for output_row in range(d.height.tile):
                tap = row - output_row * d.row_stride
                if not 0 <= tap < d.window[0]:
                    continue
                for number, use in enumerate(self.uses):
                    place = (tap * len(self.uses) + number) * block.vectors
                    totals = sums[output_row][use.output]
                    for v in range(block.vectors):
                        w = c.load(c.at(weights, 4 * lanes * (place + v)), vector(I32, lanes))
                        totals[v] = dot(c, totals[v], bundles[use.bundle][v], w)
        return sums

    def _bundle(self, row: Value, index: int, block: Block) -> list[Value]:
        """A bundle of a row: in each lane, the elements of a channel."""
        d, c, lanes = self.d, self.c, self.isa.lanes
        kind, size = {"u8": I8, "s16": I16, "f32": F32}[d.element], BYTES[d.element]
        found: list[Value] = []
        for first, together in d.epilogue.groups(block):
            columns = []
            for i in range(d.bundle):
                column = min(d.bundle * index + i, d.used_columns - 1)  # its weight is zero from the last one on
                at = c.at(row, column * d.columns + first * lanes * size)
                columns.append(c.load(at, vector(kind, together * lanes)))
            found += self._interleaved(columns, together)
        return found

    def _interleaved(self, columns: list[Value], together: int) -> list[Value]:
        lanes = self.isa.lanes
        if self.d.element == "f32":
            (column,), order = columns, self.isa.channel_order(together)
            return [self.c.take(column, order[v * lanes : (v + 1) * lanes]) for v in range(together)]
        whole = self.isa.interleave_words if self.d.element == "s16" else self.isa.interleave
        return whole(self.c, columns, together)
