"""Tensors of a plan: a storage, or a view of one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..codegen.expr import Kind
from .storage import Storage


@dataclass(frozen=True)
class Dim:
    """An axis of a value: a stride of ``step`` indices of the axis ``axis`` of its storage; None: it does not move."""

    size: int
    axis: int | None
    step: int = 1


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor, or a view of one.

    Attributes:
        storage: the memory.
        dims: its axes.
        starts: where it begins on each axis of the storage.
        drift: bytes that it moves on in each round of a loop.
    """

    storage: Storage
    dims: tuple[Dim, ...]
    starts: tuple[int, ...]
    drift: int = 0

    @staticmethod
    def of(storage: Storage) -> Value:
        """The whole of a storage."""
        dims = tuple(Dim(n, axis) for axis, n in enumerate(storage.shape))
        return Value(storage, dims, (0,) * len(dims))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(d.size for d in self.dims)

    @property
    def element(self) -> Kind:
        return self.storage.element

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes from one index to the next, by axis; 0 where it does not move."""
        own = self.storage.strides
        return tuple(0 if d.axis is None else d.step * own[d.axis] for d in self.dims)

    @property
    def offset(self) -> int:
        """Bytes from the begin of the memory of :attr:`Storage.root`."""
        own = self.storage.strides
        return self.storage.offset + sum(start * own[axis] for axis, start in enumerate(self.starts))

    @property
    def whole(self) -> bool:
        """Whether it is the storage itself."""
        return self.dims == Value.of(self.storage).dims and not any(self.starts)

    def order(self) -> tuple[int, ...]:
        """The axes, outermost in memory first; axes that do not move come first."""
        place = {axis: i for i, axis in enumerate(self.storage.order)}

        def key(axis: int) -> tuple[int, int]:
            dim = self.dims[axis]
            return (-1, 0) if dim.axis is None else (place[dim.axis], -dim.step)

        return tuple(sorted(range(len(self.dims)), key=key))

    def strides_follow(self, order: Sequence[int]) -> bool:
        """Whether the axes lie in memory in this order, the last one contiguous."""
        moving = [a for a in order if self.dims[a].axis is not None and self.dims[a].size > 1]
        place = {axis: i for i, axis in enumerate(self.storage.order)}
        keys = [(place[self.dims[a].axis], -self.dims[a].step) for a in moving]  # type: ignore[index]
        last = self.dims[order[-1]]
        contiguous = last.axis == self.storage.order[-1] and last.step == 1
        return keys == sorted(keys) and (contiguous or last.size == 1)

    def at_round(self, axis: int, step: int = 1) -> Value:
        """One index of ``axis``, which moves on by ``step`` in each round of a loop, without the axis."""
        return replace(self.without(axis), drift=step * self.strides[axis])

    def permuted(self, axes: Sequence[int]) -> Value:
        """As ``torch.permute``."""
        return replace(self, dims=tuple(self.dims[a] for a in axes))

    def narrowed(self, axis: int, start: int, length: int, step: int = 1) -> Value:
        """Every ``step``-th index of an axis from ``start`` on, ``length`` in all."""
        dim, starts = self.dims[axis], list(self.starts)
        if dim.axis is not None:
            starts[dim.axis] += start * dim.step
        dims = list(self.dims)
        dims[axis] = Dim(length, dim.axis, dim.step * step)
        return replace(self, dims=tuple(dims), starts=tuple(starts))

    def without(self, axis: int) -> Value:
        """Drop an axis of one."""
        return replace(self, dims=(*self.dims[:axis], *self.dims[axis + 1 :]))

    def with_one(self, axis: int) -> Value:
        """Insert an axis of one."""
        return replace(self, dims=(*self.dims[:axis], Dim(1, None), *self.dims[axis:]))

    def expanded(self, shape: Sequence[int]) -> Value:
        """As ``torch.broadcast_to``."""
        added = [Dim(1, None)] * (len(shape) - len(self.dims))
        dims = (*added, *self.dims)
        fit = tuple(d if d.size == n else Dim(n, None) for d, n in zip(dims, shape, strict=True))
        return replace(self, dims=fit)

    def reshaped(self, shape: Sequence[int]) -> Value | None:
        """As ``torch.Tensor.view``; None if the memory does not allow it."""
        old = [d for d in self.dims if d.size != 1]
        dims: list[Dim] = []
        place = 0
        for size in shape:
            if size == 1:
                dims.append(Dim(1, None))
                continue
            merged = 1
            taken: Dim | None = None
            while merged < size and place < len(old):
                dim = old[place]
                if dim.size * merged > size:  # only a part of this axis: split it
                    if size % merged or dim.size % (size // merged):
                        return None
                    part, inner = size // merged, dim.size // (size // merged)
                    head = Dim(part, dim.axis, dim.step * inner)
                    old[place] = Dim(inner, dim.axis, dim.step)
                    dim = head
                else:
                    place += 1
                if taken is not None:
                    joined = self._joined(taken, dim)
                    if joined is None:
                        return None
                    taken = joined
                else:
                    taken = dim
                merged *= dim.size
            if merged != size or taken is None:
                return None
            dims.append(Dim(size, taken.axis, taken.step))
        return replace(self, dims=tuple(dims)) if place == len(old) else None

    def _joined(self, outer: Dim, inner: Dim) -> Dim | None:
        """Two axes as one, if the outer one steps over the whole inner one."""
        if outer.axis is None or inner.axis is None:
            return None
        if outer.axis == inner.axis:
            return Dim(0, inner.axis, inner.step) if outer.step == inner.step * inner.size else None
        storage, order = self.storage, self.storage.order
        moving = [a for a in order if storage.shape[a] > 1]
        if outer.axis not in moving or inner.axis not in moving:
            return None
        adjacent = moving.index(outer.axis) + 1 == moving.index(inner.axis)
        covers = inner.size * inner.step == storage.shape[inner.axis] and self.starts[inner.axis] == 0
        if not (adjacent and covers and outer.step == 1) or storage.root.halo or storage.parent:
            return None
        storage.dense = True
        return Dim(0, inner.axis, inner.step)
