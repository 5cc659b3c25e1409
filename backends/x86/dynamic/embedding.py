"""Embedding tables as rows of bytes or nibbles, each followed by its scale and offset (the layout of FBGEMM).

A row of 8 bits is ``dim`` bytes, an fp32 scale and an fp32 offset; one of 4 bits is ``dim / 2`` bytes, low nibble
first, and both as fp16: ``value = scale * integer + offset``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...base import IntegerWeight
from ...dynamic import DynamicLayer, Layer

Q = torch.ops.quantized
BYTE, NIBBLE, HALF = "embedding_bag_byte_rowwise_offsets", "embedding_bag_4bit_rowwise_offsets", "embedding fp16"


def refuse_rows(module: nn.Module) -> str | None:
    """Why an embedding has no form here."""
    return "max_norm changes the table as it reads" if getattr(module, "max_norm", None) else None


def refuse_bag(module: nn.Module) -> str | None:
    """Why an ``nn.EmbeddingBag`` has none."""
    return "no kernel takes the maximum of int8 rows" if getattr(module, "mode", "") == "max" else refuse_rows(module)


def rows_of(weight: IntegerWeight) -> tuple[str, Tensor]:
    """The kernel that reads ``weight``, and its rows."""
    count, dim = weight.integers.shape
    few = int(weight.integers.min()) >= -8 and int(weight.integers.max()) <= 7 and dim % 2 == 0
    low = 8 if few else 128
    integers = (weight.integers.to(torch.int16) + low).to(torch.uint8)
    scale = weight.scale.expand(count).float()[:, None]
    offset = -scale * (weight.zero_point.expand(count)[:, None] + low)
    if few:
        integers = integers[:, 0::2] | (integers[:, 1::2] << 4)
        scale, offset = scale.half(), offset.half()
    parts = [integers, *(t.contiguous().view(torch.uint8) for t in (scale, offset))]
    return (NIBBLE if few else BYTE), torch.cat(parts, 1).contiguous()


class _Rows(DynamicLayer):
    """The table, and sums over bags of its rows."""

    rows: Tensor

    def __init__(self, layer: Layer) -> None:
        weight = layer.weights["weight"]
        kernel, rows = rows_of(weight) if isinstance(weight, IntegerWeight) else (HALF, weight)
        super().__init__(layer, kernel if kernel == HALF else f"quantized::{kernel}")
        self.register_buffer("rows", rows)
        self.weight_bytes = rows.numel() * rows.element_size()
        self._sum: Any = None if kernel == HALF else getattr(Q, kernel).default._op

    def sum(self, indices: Tensor, offsets: Tensor, weights: Tensor | None = None, whole: bool = False) -> Tensor:
        """The sum of each bag's rows, fp32; ``whole``: the last offset is the end."""
        if self._sum is not None:
            result: Tensor = self._sum(self.rows, indices, offsets, False, 0, False, weights, None, whole)
            return result
        scaled = None if weights is None else weights.half()
        kept = F.embedding_bag(
            indices, self.rows, offsets, mode="sum", per_sample_weights=scaled, include_last_offset=whole
        )
        return kept.float()


class RowwiseEmbedding(_Rows):
    """``nn.Embedding``: integer indices of any shape to (*shape, dim), fp32."""

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer)
        self.dim = int(layer.module.embedding_dim)  # type: ignore[arg-type]

    def forward(self, input: Tensor) -> Tensor:
        if self._sum is None:
            return F.embedding(input, self.rows).float()
        flat = input.reshape(-1)
        ends = torch.arange(flat.numel(), dtype=flat.dtype)
        result: Tensor = self._sum(self.rows, flat, ends, False, 0, False, None, None, False)
        return result.view(*input.shape, self.dim)


class RowwiseEmbeddingBag(_Rows):
    """``nn.EmbeddingBag``, ``sum`` or ``mean``: indices (N,) with offsets, or (B, N), to (B, dim), fp32."""

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer)
        bag: Any = layer.module
        self.mean = bag.mode == "mean"
        self.padding, self.whole = bag.padding_idx, bag.include_last_offset

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        if input.dim() == 2:
            if offsets is not None:
                raise ValueError("offsets must be None where the input has two axes: each row is a bag.")
            count, width = input.shape
            offsets = torch.arange(count, dtype=input.dtype) * width
            whole = False
        elif input.dim() == 1 and offsets is not None:
            whole = self.whole
        else:
            raise ValueError(f"input must have two axes, or one with offsets; got {tuple(input.shape)}.")
        if per_sample_weights is not None and self.mean:
            raise ValueError("per_sample_weights are for the mode 'sum' only.")
        flat = input.reshape(-1)
        weights = None if per_sample_weights is None else per_sample_weights.reshape(-1)
        if self.padding is not None:
            kept = (flat != self.padding).float()
            weights = kept if weights is None else weights * kept
        result = self.sum(flat, offsets, weights, whole)
        return result / self._counts(flat, offsets, weights, whole) if self.mean else result

    @staticmethod
    def _counts(flat: Tensor, offsets: Tensor, weights: Tensor | None, whole: bool) -> Tensor:
        """How many rows each bag averages, at least 1: (B, 1)."""
        ends = offsets[1:] if whole else torch.cat([offsets[1:], offsets.new_tensor([flat.numel()])])
        starts = offsets[:-1] if whole else offsets
        if weights is None:
            return (ends - starts).clamp_min(1)[:, None]
        before = F.pad(weights.cumsum(0), (1, 0))
        return (before[ends.long()] - before[starts.long()]).clamp_min(1)[:, None]
