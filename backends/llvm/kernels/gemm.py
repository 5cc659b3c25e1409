"""Convolutions and matrix products: an implicit GEMM over runs of contiguous input bytes.

The output is cut into tiles of pixels by blocks of channels. A tile keeps its sums in registers. For each 32 bits of a
run, it loads the weights of its channels once, and broadcasts the input of each pixel to all lanes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Literal

from ..codegen.code import F16, F32, I32, Code, Value, i64, splat, vector
from ..codegen.emit import zeros
from ..codegen.expr import Kind
from ..codegen.isa import Isa
from .axes import Axis, Tiles, count, moved, numbers_of
from .blocks import Block, blocks_of, choose_block, each_block
from .epilogue import Epilogue, Store

UNROLLED = 8  # steps of a run that are written out without a loop

WeightStorage = Literal["full", "f16", "s4"]
LANE_BYTES: dict[WeightStorage, int] = {"full": 4, "f16": 2, "s4": 2}  # of the weights of a lane for a step
HIGH = 0xF0F0F0F0


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
        storage: of weights. "f16" is for an input of fp32. "s4": integers are multiples of 16, whose lower four bits
            are not stored; two steps share a register.
        scaled: the sum of each tap is multiplied by a scale, which is stored after its weights. Sums are fp32 then.
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
    storage: WeightStorage
    scaled: bool
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
    def tap_bytes(self) -> int:
        """Bytes of the weights of a lane for one tap."""
        steps = self.steps + self.steps % self.shared
        return LANE_BYTES[self.storage] * steps + (4 if self.scaled else 0)

    @property
    def shared(self) -> int:
        """Steps that share a register of weights."""
        return 2 if self.storage == "s4" else 1

    @property
    def depth(self) -> int:
        """Loads of 32 bits of input for one output pixel."""
        return self.steps * self.window

    @property
    def window(self) -> int:
        """Taps in all."""
        return math.prod(n for n, _ in self.taps)

    @property
    def lane_bytes(self) -> int:
        """Bytes of the weights of a lane for one output pixel."""
        return self.tap_bytes * self.window

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
        weights = c.at(self.weights, c.times(lane, g.lane_bytes))
        params = c.at(self.params, c.times(lane, 4 * g.epilogue.params))
        at = moved(c, rest, first, [e.step for e in g.epilogue.elements])
        pixels = [(r, s) for r in range(g.height.tile) for s in range(g.width.tile)]
        totals = self._sums(source, weights, pixels, block.vectors)
        store = Store(c, self.isa, g.epilogue, params, self.scalars)
        for (r, s), row in zip(pixels, totals, strict=True):
            moves = [r * down + s * right for down, right in zip(g.height.moves[1:], g.width.moves[1:], strict=True)]
            store.block(row, [c.at(p, move) for p, move in zip(at, moves, strict=True)], block)

    def _weights(self, at: Value, vectors: int, steps: int) -> Iterator[list[Value]]:
        """The registers of weights for each of ``steps`` steps."""
        g, c, lanes = self.g, self.c, self.isa.lanes
        register = lanes * LANE_BYTES[g.storage] * g.shared
        for first in range(0, steps, g.shared):
            places = [c.at(at, register * (first // g.shared * vectors + v)) for v in range(vectors)]
            if g.storage == "f16":
                yield [c.b.fpext(c.load(p, vector(F16, lanes)), vector(F32, lanes)) for p in places]
                continue
            held = [c.load(p, vector(I32, lanes)) for p in places]
            if g.storage == "full":
                yield held
                continue
            high = splat(HIGH, I32, lanes)
            yield [c.b.and_(c.b.shl(w, splat(4, I32, lanes)), high) for w in held]
            if first + 1 < steps:
                yield [c.b.and_(w, high) for w in held]

    def _sums(self, source: Value, weights: Value, pixels: list[tuple[int, int]], vectors: int) -> list[list[Value]]:
        g, c = self.g, self.c
        lanes, start = self.isa.lanes, zeros(self.isa, g.element)
        sums = [[c.variable(start.type, start) for _ in range(vectors)] for _ in pixels]
        whole = zeros(self.isa, "f32")
        scaled = [[c.variable(whole.type, whole) for _ in range(vectors)] for _ in pixels] if g.scaled else sums
        shifts = [r * g.height.moves[0] + s * g.width.moves[0] for r, s in pixels]
        step_bytes = vectors * lanes * LANE_BYTES[g.storage]
        dot = self.isa.dot_of(g.element)

        def add(a: Value, w: Value, steps: int) -> None:
            totals = [[c.b.load(slot) for slot in row] for row in sums]
            for k, b in enumerate(self._weights(w, vectors, steps)):
                for shift, row in zip(shifts, totals, strict=True):
                    broadcast = c.repeat(c.load(c.at(a, 4 * k + shift), I32), lanes)
                    row[:] = [dot(c, total, broadcast, b[v]) for v, total in enumerate(row)]
            for row, totals_of_row in zip(sums, totals, strict=True):
                for slot, total in zip(row, totals_of_row, strict=True):
                    c.b.store(total, slot)

        with ExitStack() as loops:
            a, w, inner = source, weights, g.lane_bytes * vectors * lanes
            for taps, move in g.taps:
                inner //= taps
                if taps > 1:
                    index = loops.enter_context(c.loop(0, taps))
                    a, w = c.at(a, c.times(index, move)), c.at(w, c.times(index, inner))
            even = 0 if g.steps <= UNROLLED else g.steps - g.steps % 2
            if even:
                with c.loop(0, even, 2) as k:
                    add(c.at(a, c.times(k, 4)), c.at(w, c.times(k, step_bytes)), 2)
            if even < g.steps:
                add(c.at(a, 4 * even), c.at(w, even * step_bytes), g.steps - even)
            if g.scaled:
                self._scale(sums, scaled, c.at(w, (g.tap_bytes - 4) * vectors * lanes))
        return [[c.b.load(slot) for slot in row] for row in scaled]

    def _scale(self, sums: list[list[Value]], scaled: list[list[Value]], at: Value) -> None:
        """Add the sums times the scales at ``at`` to the fp32 sums, and begin them again."""
        c, lanes = self.c, self.isa.lanes
        kind = vector(F32, lanes)
        scales = [c.load(c.at(at, 4 * lanes * v), kind) for v in range(len(sums[0]))]
        for row, totals in zip(sums, scaled, strict=True):
            for slot, total, scale in zip(row, totals, scales, strict=True):
                value = c.b.sitofp(c.b.load(slot), kind)
                c.b.store(c.intrinsic(f"llvm.fma.v{lanes}f32", kind, (value, scale, c.b.load(total))), total)
                c.b.store(zeros(self.isa), slot)
