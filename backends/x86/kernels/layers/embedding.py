"""Embedding tables as rows of bytes or nibbles, each followed by its scale and offset (the layout of FBGEMM).

A row of 8 bits is ``dim`` bytes, an fp32 scale and an fp32 offset; one of 4 bits is ``dim / 2`` bytes, low nibble
first, and both as fp16: ``value = scale * integer + offset``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .....compiler.core.tensors import tensor_bytes
from ....base.dynamic_layer import DynamicLayer
from ....base.dynamic_spec import DynamicSpec
from ....base.weights import IntegerWeight

BYTE, NIBBLE, HALF = "embedding_bag_byte_rowwise_offsets", "embedding_bag_4bit_rowwise_offsets", "embedding fp16"
HALF_INFO = torch.finfo(torch.float16)


def rows_of(weight: IntegerWeight) -> tuple[str, Tensor]:
    """The kernel that reads ``weight``, and the packed rows."""
    count, dim = weight.integers.shape
    scale = weight.scale.expand(count).float()[:, None]
    zero_point = weight.zero_point.expand(count)[:, None]
    fits = int(weight.integers.min()) >= -8 and int(weight.integers.max()) <= 7 and dim % 2 == 0
    # Neither the scale nor the offset, at most 16 steps, may leave the normal numbers of fp16.
    normal = float(scale.min()) > HALF_INFO.tiny and float(scale.max()) * 16 < HALF_INFO.max
    four_bits = fits and normal
    low = 8 if four_bits else 128
    integers = (weight.integers.to(torch.int16) + low).to(torch.uint8)
    offset = -scale * (zero_point + low)
    if four_bits:
        integers = integers[:, 0::2] | (integers[:, 1::2] << 4)
        scale, offset = scale.half(), offset.half()
    parts = [integers, *(t.contiguous().view(torch.uint8) for t in (scale, offset))]
    return (NIBBLE if four_bits else BYTE), torch.cat(parts, 1).contiguous()


class _Rows(DynamicLayer):
    """The table, and sums over bags of its rows. TorchScript compiles this: ops are called by their full names."""

    embedding_dim: int
    rows: Tensor

    def __init__(self, spec: DynamicSpec) -> None:
        weight = spec.weights["weight"]
        kernel, rows = rows_of(weight) if isinstance(weight, IntegerWeight) else (HALF, weight)
        super().__init__(spec, kernel if kernel == HALF else f"quantized::{kernel}")
        self.register_buffer("rows", rows)
        self.weight_bytes = tensor_bytes(rows)
        self.is_nibble = kernel == NIBBLE

    def unpacked(self, name: str) -> Tensor | None:
        each = torch.arange(self.rows.size(0))
        return self.sum(each, each, None, False)

    def sum(self, indices: Tensor, offsets: Tensor, weights: Tensor | None, last: bool) -> Tensor:
        """The sum of the rows of each bag, fp32. ``last``: the last offset is the end of the last bag."""
        if self.is_half:
            # The kernel of torch returns fp16, which a sum may overflow.
            rows = F.embedding(indices, self.rows).float()
            rows = rows if weights is None else rows * weights.unsqueeze(1)
            places = torch.arange(indices.numel(), dtype=offsets.dtype)
            bags = torch.bucketize(places, offsets[:-1] if last else offsets, right=True) - 1
            count = offsets.numel() - 1 if last else offsets.numel()
            return rows.new_zeros([count, self.rows.size(1)]).index_add_(0, bags, rows)
        if self.is_nibble:
            return torch.ops.quantized.embedding_bag_4bit_rowwise_offsets(
                self.rows, indices, offsets, False, 0, False, weights, None, last
            )
        return torch.ops.quantized.embedding_bag_byte_rowwise_offsets(
            self.rows, indices, offsets, False, 0, False, weights, None, last
        )


class RowwiseEmbedding(_Rows):
    """``nn.Embedding``: integer indices of any shape to (*shape, dim), fp32."""

    def forward(self, input: Tensor) -> Tensor:
        if self.is_half:
            return F.embedding(input, self.rows).float()
        flat = input.reshape(-1).contiguous()
        each = torch.arange(flat.numel(), dtype=flat.dtype)
        return self.sum(flat, each, None, False).view(input.size() + (self.embedding_dim,))  # noqa: RUF005 (TorchScript)


class RowwiseEmbeddingBag(_Rows):
    """``nn.EmbeddingBag``, ``sum`` or ``mean``: indices (N,) with offsets, or (B, N), to (B, dim), fp32."""

    def __init__(self, spec: DynamicSpec) -> None:
        super().__init__(spec)
        bag: Any = spec.layer
        self.mean = bag.mode == "mean"
        self.padding = -1 if bag.padding_idx is None else int(bag.padding_idx)

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        if per_sample_weights is not None and self.mean:
            raise ValueError("per_sample_weights are for the mode 'sum' only.")
        if input.dim() == 2:
            if offsets is not None:
                raise ValueError("offsets must be None where the input has two axes: each row is a bag.")
            offsets = torch.arange(0, input.numel(), max(input.size(1), 1), dtype=input.dtype)
        elif input.dim() != 1 or offsets is None:
            raise ValueError("input must have two axes, or one with offsets.")
        offsets = offsets.contiguous()
        flat = input.reshape(-1).contiguous()
        weights = None if per_sample_weights is None else per_sample_weights.reshape(-1).contiguous()
        last = bool(self.include_last_offset) and input.dim() == 1
        if self.padding >= 0:
            kept = (flat != self.padding).float()
            weights = kept if weights is None else weights * kept
        result = self.sum(flat, offsets, weights, last)
        if not self.mean:
            return result
        if input.dim() == 1:
            counts = self.counts(flat, offsets, weights, last)
        elif weights is None:
            return result / input.size(1)
        else:
            counts = weights.view(input.size(0), input.size(1)).sum(1)
        return result / counts.clamp_min(1).unsqueeze(1)

    def counts(self, flat: Tensor, offsets: Tensor, weights: Tensor | None, last: bool) -> Tensor:
        """The number of rows in each bag of a flat input: (B,)."""
        bounds = offsets if last else torch.cat([offsets, offsets.new_full([1], flat.numel())])
        if weights is None:
            return bounds[1:] - bounds[:-1]
        before = torch.cat([weights.new_zeros([1]), weights.cumsum(0)])[bounds.long()]
        return before[1:] - before[:-1]
