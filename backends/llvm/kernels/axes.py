"""Axes that a kernel loops over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..codegen.code import Code, Value, i64


@dataclass(frozen=True)
class Axis:
    """An axis of the output: its size, and the bytes from one index to the next in each tensor.

    Attributes:
        tile: how many indices are computed at once. The last tile ends with the axis, and may overlap the one before.
    """

    size: int
    moves: tuple[int, ...]
    tile: int = 1

    @property
    def tiles(self) -> int:
        return -(-self.size // self.tile)

    def start(self, c: Code, index: Value) -> Value:
        """The first index of a tile."""
        start = c.times(index, self.tile)
        if self.size % self.tile == 0:
            return start
        last = i64(self.size - self.tile)
        return c.b.select(c.b.icmp_signed("<", start, last), start, last)


def count(axes: Sequence[Axis]) -> int:
    """Tiles in all."""
    return math.prod(axis.tiles for axis in axes)


def locate(c: Code, axes: Sequence[Axis], item: Value, pointers: Sequence[Value]) -> tuple[list[Value], list[Value]]:
    """Where the tile ``item`` begins in each tensor, and its index on each axis; the last axis is the fastest."""
    indices: list[Value] = []
    offsets: list[Value | None] = [None] * len(pointers)
    for position in reversed(range(len(axes))):
        axis = axes[position]
        item, index = c.divide(item, axis.tiles) if position else (item, item)
        indices.insert(0, index)
        if axis.size == 1:
            continue
        start = axis.start(c, index)
        for i, move in enumerate(axis.moves):
            if move:
                step = c.times(start, move)
                known = offsets[i]
                offsets[i] = step if known is None else c.b.add(known, step)
    return [p if o is None else c.at(p, o) for p, o in zip(pointers, offsets, strict=True)], indices


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
