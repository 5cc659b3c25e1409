"""Convolutions and matrix products: an implicit GEMM over runs of contiguous input bytes.

The output is cut into tiles of pixels by blocks of channels. A tile keeps its sums in registers. For each 32 bits of a
run, it loads the weights of its channels once, and broadcasts the input of each pixel to all lanes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from ..codegen.code import F16, F32, I32, Code, Value, i64, vector
from ..codegen.emit import zeros
from ..codegen.expr import Kind
from ..codegen.isa import Isa
from .axes import Axis, Tiles, count, moved, numbers_of
from .blocks import Block, blocks_of, choose_block, each_block
from .epilogue import Epilogue, Store

UNROLLED = 8  # steps of a run that are written out without a loop


@dataclass(frozen=True)
class Gemm:
    """A contraction. The tensors of an axis are input, output, operands.

    Attributes:
        outer: axes of the output, outermost first.
        groups: the places in ``outer`` of the axes along which weights and parameters change.
        height, width: the axes that tiles are cut from.
        taps: nested loops over the window: (count, bytes from one to the next in the input).
        run: contiguous input bytes at each tap.
        element: what the input is.
        half: weights are fp16, for an input of fp32.
        channels: output channels of a group.
        epilogue: what is stored.
        vectors: registers of channels in a block.
        blocks_first: an item of work is one block of a tile, and all tiles of a block come before the next block. Else
            an item is a tile with all its blocks.
    """

    outer: tuple[Axis, ...]
    groups: tuple[int, ...]
    height: Axis
    width: Axis
    taps: tuple[tuple[int, int], ...]
    run: int
    element: Kind
    half: bool
    channels: int
    epilogue: Epilogue
    vectors: int
    blocks_first: bool
    isa: Isa

    @property
    def steps(self) -> int:
        """Loads of 32 bits of input at each tap."""
        return -(-self.run // 4)

    @property
    def weight_bytes(self) -> int:
        """Of a lane."""
        return 2 if self.half else 4

    @property
    def depth(self) -> int:
        """Loads of 32 bits of input for one output pixel."""
        return self.steps * math.prod(n for n, _ in self.taps)

    @property
    def blocks(self) -> list[Block]:
        """All blocks of a group."""
        return blocks_of(self.channels, self.vectors, self.isa.lanes)

    @property
    def padded_channels(self) -> int:
        """Lanes of all blocks of a group."""
        return self.isa.lanes * sum(b.vectors for b in self.blocks)

    @property
    def axes(self) -> tuple[Axis, ...]:
        return *self.outer, self.height, self.width

    @property
    def items(self) -> int:
        """Units of work."""
        return count(self.axes) * (len(self.blocks) if self.blocks_first else 1)

    @property
    def numbers(self) -> tuple[int, ...]:
        """What is read at run time."""
        return numbers_of(self.axes)

    def emit(self, name: str) -> str:
        """The kernel as IR. Arguments: input, output, operands, weights, parameters per channel, scalars."""
        return _Emitter(self, Code(name)).emit()


class _Emitter:
    def __init__(self, gemm: Gemm, code: Code) -> None:
        self.g, self.c, self.isa = gemm, code, gemm.isa
        tensors = 2 + len(gemm.epilogue.operands)
        self.tensors = [code.pointer(i) for i in range(tensors)]
        self.weights, self.params, self.scalars = (code.pointer(tensors + i) for i in range(3))

    def emit(self) -> str:
        g, c = self.g, self.c
        tiles = Tiles(c, g.axes)
        with c.loop(c.low, c.high) as item:
            index, tile = c.divide(item, tiles.total) if g.blocks_first else (None, item)
            tensors, indices = tiles.locate(tile, self.tensors)
            group = i64(0)
            for place in g.groups:
                group = c.b.add(c.times(group, tiles.counts[place]), indices[place])
            emit = partial(self._block, tensors, group)
            if index is None:
                each_block(c, g.blocks, emit)
            else:
                choose_block(c, index, g.blocks, emit)
        return c.finish()

    def _block(self, tensors: list[Value], group: Value, index: Value, block: Block) -> None:
        """One tile by one block: sum the products, then store."""
        g, c = self.g, self.c
        source, *rest = tensors
        first = c.times(index, g.vectors * self.isa.lanes)
        lane = c.b.add(first, c.times(group, g.padded_channels))
        weights = c.at(self.weights, c.times(lane, g.weight_bytes * g.depth))
        params = c.at(self.params, c.times(lane, 4 * g.epilogue.params))
        at = moved(c, rest, first, [e.step for e in g.epilogue.elements])
        pixels = [(r, s) for r in range(g.height.tile) for s in range(g.width.tile)]
        totals = self._sums(source, weights, pixels, block.vectors)
        store = Store(c, self.isa, g.epilogue, params, self.scalars)
        for (r, s), row in zip(pixels, totals, strict=True):
            moves = [r * down + s * right for down, right in zip(g.height.moves[1:], g.width.moves[1:], strict=True)]
            store.block(row, [c.at(p, move) for p, move in zip(at, moves, strict=True)], block)

    def _weights(self, at: Value) -> Value:
        """A register of weights."""
        if not self.g.half:
            return self.c.load(at, vector(I32, self.isa.lanes))
        return self.c.b.fpext(self.c.load(at, vector(F16, self.isa.lanes)), vector(F32, self.isa.lanes))

    def _sums(self, source: Value, weights: Value, pixels: list[tuple[int, int]], vectors: int) -> list[list[Value]]:
        g, c = self.g, self.c
        lanes, start = self.isa.lanes, zeros(self.isa, g.element)
        sums = [[c.variable(start.type, start) for _ in range(vectors)] for _ in pixels]
        shifts = [r * g.height.moves[0] + s * g.width.moves[0] for r, s in pixels]
        register = self.isa.lanes * g.weight_bytes
        stride = vectors * register
        dot = self.isa.dot_of(g.element)

        def steps(places: Sequence[tuple[Value, Value]]) -> None:
            totals = [[c.b.load(slot) for slot in row] for row in sums]
            for a, w in places:
                b = [self._weights(c.at(w, v * register)) for v in range(vectors)]
                for shift, row in zip(shifts, totals, strict=True):
                    broadcast = c.repeat(c.load(c.at(a, shift), I32), lanes)
                    row[:] = [dot(c, total, broadcast, b[v]) for v, total in enumerate(row)]
            for row, totals_of_row in zip(sums, totals, strict=True):
                for slot, total in zip(row, totals_of_row, strict=True):
                    c.b.store(total, slot)

        with ExitStack() as loops:
            a, w, inner = source, weights, g.depth * stride
            for taps, move in g.taps:
                inner //= taps
                if taps > 1:
                    index = loops.enter_context(c.loop(0, taps))
                    a, w = c.at(a, c.times(index, move)), c.at(w, c.times(index, inner))
            even = 0 if g.steps <= UNROLLED else g.steps - g.steps % 2
            if even:
                with c.loop(0, even, 2) as k:
                    ak, wk = c.at(a, c.times(k, 4)), c.at(w, c.times(k, stride))
                    steps([(ak, wk), (c.at(ak, 4), c.at(wk, stride))])
            if even < g.steps:
                steps([(c.at(a, 4 * k), c.at(w, k * stride)) for k in range(even, g.steps)])
        return [[c.b.load(slot) for slot in row] for row in sums]
