"""One step of a GPT-2-like decoder that keeps the keys and values of the tokens before."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DecoderLayer(nn.Module):
    """Pre-LN: x [N,T,dim] and the keys and values before, [2,N,heads,past,dim / heads] -> x and all of them."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.body = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norms[0](x)).chunk(3, -1)
        )
        key, value = torch.cat((past[0], key), 2), torch.cat((past[1], value), 2)
        mixed = F.scaled_dot_product_attention(query, key, value)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.body(self.norms[1](x)), torch.stack((key, value))


class GPT2Step(nn.Module):
    """Int64 ids [N,1] and the cache [depth,2,N,heads,past,dim / heads] -> logits [N,1,vocabulary] and the new cache."""

    def __init__(
        self, dim: int = 768, heads: int = 12, depth: int = 12, vocabulary: int = 8192, positions: int = 1024
    ) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, dim), nn.Embedding(positions, dim)
        self.layers = nn.ModuleList(DecoderLayer(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocabulary, bias=False)

    def forward(self, ids: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        x = self.tokens(ids) + self.positions(torch.full_like(ids, past.size(4)))
        kept = []
        for number, layer in enumerate(self.layers):
            x, cache = layer(x, past[number])
            kept.append(cache)
        return self.head(self.norm(x)), torch.stack(kept)
