"""Embeddings with int8, 4-bit or fp16 rows, for calls that no plan computes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...base.dynamic_spec import DynamicSpec
from ...base.weights import IntegerWeight
from ..codegen.isa import Isa
from .gather import check_indices, has_equal_bags, row_bytes, row_kind
from .planned_layer import PlannedLayer

NAMES = {"s8": "rows of 8 bits", "s4": "rows of 4 bits", "f16": "rows of fp16"}


class PlannedEmbedding(PlannedLayer):
    """``nn.Embedding``, or ``nn.EmbeddingBag`` with the modes ``sum`` and ``mean``."""

    num_embeddings: int
    embedding_dim: int

    def __init__(self, spec: DynamicSpec, isa: Isa) -> None:
        super().__init__(spec, isa)
        rows = row_kind(spec.weights["weight"])
        self.kernel = f"{isa.name} {NAMES[rows]}"
        self.weight_bytes = self.num_embeddings * row_bytes(rows, self.embedding_dim)

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        plain = offsets is None and per_sample_weights is None
        if self.spec[0].op == "embedding" or (plain and has_equal_bags(self, input.dim())):
            return super().forward(input)
        return self._bags(input, offsets, per_sample_weights)

    def _bags(self, input: Tensor, offsets: Tensor | None, weights: Tensor | None) -> Tensor:
        """Bags of different sizes, or with weights: by torch, over a table of the rows that are read."""
        (spec,) = self.spec
        weight, flat = spec.weights["weight"], input.reshape(-1)
        check_indices(flat, self.num_embeddings)
        if isinstance(weight, IntegerWeight):
            zeros, scales = (t.expand(weight.integers.shape[0])[flat, None] for t in (weight.zero_point, weight.scale))
            rows = (weight.integers[flat] - zeros).float() * scales.float()
        else:
            rows = weight[flat].float()
        places = torch.arange(flat.numel())
        if self.padding_idx is not None:
            places = torch.where(flat == self.padding_idx, flat.numel(), places)
        table = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
        return F.embedding_bag(
            places.view(input.shape), table, offsets, mode=self.mode, per_sample_weights=weights,
            include_last_offset=self.include_last_offset, padding_idx=flat.numel(),
        )  # fmt: skip
