"""Memory of the tensors of a plan: laid out when all steps are known."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from ..codegen.expr import Kind
from ..kernels.operands import BYTES

Place = Literal["arena", "constant", "input", "output"]
TOPS: dict[Kind, float] = {"u8": 255.0, "s16": 32768.0, "f32": math.inf, "i64": math.inf}  # the largest magnitude


@dataclass(eq=False)
class Storage:
    """The memory of one tensor, as one block of elements, or as a part of another storage.

    Attributes:
        element: what an element is.
        shape: in the order of the tensor's axes.
        order: the axes, outermost in memory first.
        place: where the block is.
        index: the number of the input, output or constant.
        zero: the integer of real zero, which fills the halo.
        halo: elements before and after each axis, which hold ``zero``.
        dense: a view merges two axes, so nothing may lie between them: no halo, no parent.
        parent: the storage that this is a part of, the axis, and where on it it begins.
        fixed_strides: bytes from one index to the next, of a tensor of the user.
        content: of a constant.
        shared: other plans have the same constant.
    """

    element: Kind
    shape: tuple[int, ...]
    order: tuple[int, ...]
    place: Place = "arena"
    index: int = 0
    zero: int = 0
    halo: dict[int, tuple[int, int]] = field(default_factory=dict)
    dense: bool = False
    parent: tuple[Storage, int, int] | None = None
    fixed_strides: tuple[int, ...] | None = None
    content: Tensor | None = None
    shared: bool = False

    @staticmethod
    def constant(tensor: Tensor) -> Storage:
        """A fp32 tensor that does not change."""
        fp32 = tensor.detach().float().contiguous()
        shape = tuple(fp32.shape)
        return Storage("f32", shape, tuple(range(len(shape))), "constant", content=fp32, dense=True)

    @property
    def root(self) -> Storage:
        """The storage that has memory of its own."""
        return self.parent[0].root if self.parent else self

    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes from one index to the next, by axis."""
        if self.parent:
            return self.parent[0].strides
        if self.fixed_strides is not None:
            return self.fixed_strides
        strides, step = [0] * len(self.shape), BYTES[self.element]
        for axis in reversed(self.order):
            strides[axis] = step
            step *= self.shape[axis] + sum(self.halo.get(axis, (0, 0)))
        return tuple(strides)

    @property
    def offset(self) -> int:
        """Bytes from the begin of the memory to the first element that is not halo."""
        if self.parent:
            storage, axis, start = self.parent
            return storage.offset + start * storage.strides[axis]
        return sum(low * self.strides[axis] for axis, (low, _) in self.halo.items())

    @property
    def bytes(self) -> int:
        """Size of the memory."""
        extents = [n + sum(self.halo.get(axis, (0, 0))) for axis, n in enumerate(self.shape)]
        return BYTES[self.element] * math.prod(extents)

    def widen(self, axis: int, low: int, high: int) -> bool:
        """Ask for a halo; whether it is there."""
        root = self.root
        known = root.halo.get(axis, (0, 0))
        if known[0] >= low and known[1] >= high:
            return True
        whole = root.shape[axis] == self.shape[axis]
        if root.dense or root.place != "arena" or not whole or root.fixed_strides is not None:
            return False
        root.halo[axis] = max(known[0], low), max(known[1], high)
        return True
