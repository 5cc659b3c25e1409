"""The weights of a program, packed for its kernels: once, whatever shapes it is called with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..runtime.native import ALIGNMENT, aligned_bytes

SLAB = 4 * 2**20  # bytes that are allocated at once, if there are many weights: they share huge pages


@dataclass(frozen=True, eq=False)
class Packed:
    """Weights as a kernel reads them, at a fixed place."""

    memory: Tensor


class WeightStore:
    """What the plans of one program share: weights, and the parameters of kernels."""

    def __init__(self) -> None:
        self._read: dict[Hashable, Any] = {}
        self._packed: dict[tuple[int, Hashable], Packed] = {}
        self._parameters: dict[bytes, Packed] = {}
        self._slab, self._used, self._total = aligned_bytes(0), 0, 0

    def read(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, which is called once for each ``key``."""
        if key not in self._read:
            self._read[key] = make()
        return self._read[key]

    def packed(self, weight: Tensor, layout: Hashable, pack: Callable[[], Tensor]) -> Packed:
        """``weight`` in a layout.

        Args:
            weight: whose identity stands for its values; it is kept.
        """
        key = id(weight), layout
        if key not in self._packed:
            self._read[key] = weight  # so that no other tensor gets its identity
            self._packed[key] = Packed(self.placed(pack()))
        return self._packed[key]

    def parameters(self, tensor: Tensor) -> Packed:
        """Parameters of a kernel: those of other plans, if they are equal."""
        content = hashlib.sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()).digest()
        if content not in self._parameters:
            self._parameters[content] = Packed(self.placed(tensor))
        return self._parameters[content]

    def placed(self, tensor: Tensor) -> Tensor:
        """The bytes of a tensor at a place where they stay."""
        raw = tensor.contiguous().view(-1).view(torch.uint8)
        if self._used + raw.numel() > self._slab.numel():
            size = max(raw.numel(), min(SLAB, self._total))
            self._slab, self._used, self._total = aligned_bytes(size), 0, self._total + size
        place = self._slab[self._used : self._used + raw.numel()]
        place.copy_(raw)
        self._used += -(-raw.numel() // ALIGNMENT) * ALIGNMENT
        return place
