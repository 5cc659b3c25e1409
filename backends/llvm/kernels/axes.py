"""Axes that a kernel loops over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..codegen.code import Code, Value


@dataclass(frozen=True)
class Axis:
    """An axis of the output: its size, and the bytes from one index to the next in each tensor.

    Attributes:
        tile: how many indices are computed at once. The last tile ends with the axis, and may overlap the one before.
        free: the kernel reads the size, and the bytes if its tile is one index, from its :attr:`numbers`. Kernels that
            differ in them alone have the same code.
        loose: it reads the bytes of any tile.
    """

    size: int
    moves: tuple[int, ...]
    tile: int = 1
    free: bool = False
    loose: bool = False

    def __repr__(self) -> str:
        """What the code depends on."""
        if not self.free:
            return f"Axis({self.size}, {self.moves}, {self.tile})"
        moves = tuple(map(bool, self.moves)) if self.reads_moves else self.moves
        return f"Axis(free, {moves}, {self.tile})"

    @property
    def tiles(self) -> int:
        return -(-self.size // self.tile)

    @property
    def numbers(self) -> tuple[int, ...]:
        """What a kernel reads at run time: the tiles, where the last one starts, and the bytes of each move."""
        if not self.free:
            return ()
        return self.tiles, self.size - self.tile, *(m for m in self.moves if m and self.reads_moves)

    @property
    def reads_moves(self) -> bool:
        """Whether the bytes are numbers."""
        return self.free and (self.loose or self.tile == 1)

    @property
    def freed(self) -> Axis:
        """The axis, free unless it has one index."""
        return replace(self, free=self.size > 1)

    def start(self, c: Code, index: Value, last: Value | int) -> Value:
        """The first index of a tile; ``last`` is that of the last tile."""
        start = c.times(index, self.tile)
        overlaps = self.tile > 1 and (self.free or self.size % self.tile)
        return c.smaller(start, last) if overlaps else start


def freed(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """The axes, free but for those of one."""
    return tuple(axis.freed for axis in axes)


def count(axes: Sequence[Axis]) -> int:
    """Tiles in all."""
    return math.prod(axis.tiles for axis in axes)


def numbers_of(axes: Sequence[Axis]) -> tuple[int, ...]:
    """What a kernel over these axes reads at run time."""
    return tuple(n for axis in axes for n in axis.numbers)


class Tiles:
    """Finds the tiles of a kernel.

    Attributes:
        counts: of tiles, by axis.
        total: tiles in all.
    """

    def __init__(self, c: Code, axes: Sequence[Axis]) -> None:
        self._c, self._axes = c, axes
        self.counts: list[Value | int] = []
        self._last: list[Value | int] = []
        self._moves: list[list[Value | int]] = []
        place = 0
        for axis in axes:
            known = [c.number(place + i) for i in range(len(axis.numbers))]
            place += len(known)
            self.counts.append(known[0] if axis.free else axis.tiles)
            self._last.append(known[1] if axis.free else axis.size - axis.tile)
            read = iter(known[2:])
            self._moves.append([next(read) if m and axis.reads_moves else m for m in axis.moves])
        self.total: Value | int = 1
        for each in self.counts:
            self.total = c.product(self.total, each)

    def locate(self, item: Value, pointers: Sequence[Value]) -> tuple[list[Value], list[Value]]:
        """Where the tile ``item`` begins in each tensor, and its index on each axis; the last axis is the fastest."""
        c, indices = self._c, list[Value]()
        offsets: list[Value | None] = [None] * len(pointers)
        for position in reversed(range(len(self._axes))):
            axis = self._axes[position]
            item, index = c.divide(item, self.counts[position]) if position else (item, item)
            indices.insert(0, index)
            if axis.size == 1 and not axis.free:
                continue
            start = self.start(position, index)
            for i, move in enumerate(self._moves[position]):
                if axis.moves[i]:
                    step = c.times(start, move)
                    known = offsets[i]
                    offsets[i] = step if known is None else c.b.add(known, step)
        return [p if o is None else c.at(p, o) for p, o in zip(pointers, offsets, strict=True)], indices

    def moves(self, position: int) -> list[Value | int]:
        """The bytes from one index to the next on an axis, in each tensor."""
        return self._moves[position]

    def start(self, position: int, index: Value) -> Value:
        """The first index of a tile on an axis."""
        return self._axes[position].start(self._c, index, self._last[position])


def moved(c: Code, pointers: Sequence[Value], index: Value, moves: Sequence[int]) -> list[Value]:
    """The pointers, each moved by ``index`` times its bytes."""
    return [c.at(p, c.times(index, m)) if m else p for p, m in zip(pointers, moves, strict=True)]


def merged(axes: Sequence[Axis]) -> list[Axis]:
    """The same axes, with neighbours as one where all tensors step evenly through both; no axes of one."""
    found: list[Axis] = []
    for axis in axes:
        if axis.size == 1:
            continue
        if found and all(a == b * axis.size for a, b in zip(found[-1].moves, axis.moves, strict=True)):
            found[-1] = Axis(found[-1].size * axis.size, axis.moves)
        else:
            found.append(axis)
    return found
