"""``nn.MultiheadAttention`` with its projections as ``nn.Linear`` layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ProjectedAttention(nn.Module):
    """The forward of ``nn.MultiheadAttention`` (Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2), in eval mode.

    Query, key and value projections that read one tensor are one wide layer.

    Args:
        attention: the float module; its weights are copied.
        own: query, key and value are always one tensor. If not, key and value are expected to be one.
    """

    # nn.TransformerEncoder(Layer) reads these to choose its fused fp32 path, which needs fp32 weights. Without an
    # in_proj_bias it does not take that path.
    in_proj_bias: None = None
    _qkv_same_embed_dim = True

    def __init__(self, attention: nn.MultiheadAttention, own: bool) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = attention.embed_dim, attention.num_heads
        self.head_dim, self.batch_first = attention.head_dim, attention.batch_first
        bias = attention.in_proj_bias
        biases: Sequence[Tensor | None] = [None] * 3 if bias is None else bias.detach().chunk(3)
        weights = _projections(attention)
        alike = weights[1].shape == weights[2].shape
        self.widths = (3,) if own else (1, 2) if alike else (1, 1, 1)
        parts, start = [], 0
        for width in self.widths:
            chosen = slice(start, start + width)
            parts.append(_linear(weights[chosen], biases[chosen]))
            start += width
        self.in_proj = nn.ModuleList(parts)
        out = attention.out_proj
        self.out_proj = _linear([out.weight.detach()], [None if out.bias is None else out.bias.detach()])
        self.eval()

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention``: (L, N, E), or (N, L, E) with ``batch_first``, or (L, E)."""
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal is a hint that goes with attn_mask; pass attn_mask, too.")
        batched = query.dim() == 3
        if not batched:
            same = {id(t): t.unsqueeze(1) for t in (query, key, value)}
            query, key, value = (same[id(t)] for t in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        first = self.batch_first and batched
        q, k, v = (self._heads(t, first) for t in self._project(query, key, value))
        bias = self._bias(q.dtype, key_padding_mask, attn_mask)
        if need_weights:
            scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)
            weights = torch.softmax(scores if bias is None else scores + bias, -1)
            mixed = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            weights = None
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        joined = mixed.transpose(1, 2).flatten(2)
        result = self.out_proj(joined if first else joined.transpose(0, 1))
        if batched:
            return result, weights
        return result.squeeze(1), None if weights is None else weights.squeeze(0)

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Query, key and value projected. Each layer runs once for every tensor that it is given."""
        given, found = (query, key, value), list[Tensor]()
        for layer, width in zip(self.in_proj, self.widths, strict=True):
            runs: dict[int, tuple[Tensor, ...]] = {}
            for i in range(width):
                tensor = given[len(found)]
                if id(tensor) not in runs:
                    runs[id(tensor)] = layer(tensor).chunk(width, -1)
                found.append(runs[id(tensor)][i])
        return found

    def _heads(self, x: Tensor, first: bool) -> Tensor:
        """To (N, heads, L, head_dim)."""
        split = x.unflatten(-1, (self.num_heads, self.head_dim))
        return split.transpose(1, 2) if first else split.permute(1, 2, 0, 3)

    def _bias(self, dtype: torch.dtype, padding: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """Both masks as a tensor to add to the scores: (N, heads or 1, L, S), or a shape that broadcasts to it."""
        total = None
        if mask is not None:
            added = _additive(mask, dtype)
            total = added.unflatten(0, (-1, self.num_heads)) if added.dim() == 3 else added
        if padding is not None:
            added = _additive(padding, dtype)[:, None, None, :]
            total = added if total is None else total + added
        return total


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as a tensor to add: minus infinity where a boolean mask is True."""
    if mask.is_floating_point():
        return mask
    if mask.dtype != torch.bool:
        raise TypeError(f"A mask must be boolean or float, got {mask.dtype}.")
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)


def _projections(attention: nn.MultiheadAttention) -> list[Tensor]:
    if attention.in_proj_weight is not None:
        return list(attention.in_proj_weight.detach().chunk(3))
    parts: list[Any] = [attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight]
    return [p.detach() for p in parts]


def _linear(weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> nn.Linear:
    """One layer with the outputs of several, side by side."""
    layer = nn.utils.skip_init(nn.Linear, weights[0].shape[1], sum(len(w) for w in weights), bias=biases[0] is not None)
    with torch.no_grad():
        layer.weight.copy_(torch.cat(list(weights)))
        if biases[0] is not None:
            layer.bias.copy_(torch.cat([b for b in biases if b is not None]))
    return layer
