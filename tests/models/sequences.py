"""Transformers and an LSTM."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .layers import Residual


class Attention(nn.Module):
    """Multi-head self-attention from plain operators: [N,T,dim] -> [N,T,dim].

    The query, key and value projections are one Linear if `fused`, else three.
    """

    def __init__(self, dim: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv = nn.ModuleList([nn.Linear(dim, 3 * dim)] if fused else [nn.Linear(dim, dim) for _ in "qkv"])
        self.fused = fused
        self.out = nn.Linear(dim, dim)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), x.size(1), self.heads, x.size(2) // self.heads).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv[0](x).chunk(3, dim=-1) if self.fused else [proj(x) for proj in self.qkv]
        scores = torch.matmul(self.split(query), self.split(key).transpose(-2, -1)) * self.scale
        mixed = torch.matmul(torch.softmax(scores, dim=-1), self.split(value))
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


def encoder_layer(dim: int, heads: int, hidden: int, pre_norm: bool, dropout: float = 0.0) -> nn.Sequential:
    """Encoder layer, pre-LN with fused or post-LN with separate projections: [N,T,dim] -> [N,T,dim]."""

    def residual(*layers: nn.Module) -> Residual:
        norm, drop = nn.LayerNorm(dim), nn.Dropout(dropout)
        if pre_norm:
            return Residual(nn.Sequential(norm, *layers, drop))
        return Residual(nn.Sequential(*layers, drop), after=norm)

    attention = residual(Attention(dim, heads, fused=pre_norm))
    return nn.Sequential(attention, residual(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)))


class BertEncoder(nn.Module):
    """Post-LN encoder with a tanh pooler on the first token: int64 ids [N,length] -> [N,num_classes]."""

    def __init__(
        self, num_classes: int = 10, dim: int = 384, heads: int = 6, hidden: int = 1536,
        depth: int = 6, length: int = 128, vocabulary: int = 8192,
    ) -> None:  # fmt: skip
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, dim)
        self.positions = nn.Parameter(torch.randn(1, length, dim))
        self.norm = nn.Sequential(nn.LayerNorm(dim), nn.Dropout(0.1))
        self.layers = nn.Sequential(*(encoder_layer(dim, heads, hidden, False, 0.1) for _ in range(depth)))
        self.head = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, num_classes))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.layers(self.norm(self.tokens(ids) + self.positions))
        out: Tensor = self.head(x[:, 0])
        return out


class ViT(nn.Module):
    """Pre-LN vision transformer with a class token: [N,3,size,size] -> [N,num_classes]."""

    def __init__(
        self, num_classes: int = 1000, size: int = 224, patch: int = 16,
        dim: int = 192, heads: int = 3, depth: int = 6,
    ) -> None:  # fmt: skip
        super().__init__()
        self.patches = nn.Conv2d(3, dim, patch, patch)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2 + 1, dim))
        self.layers = nn.Sequential(*(encoder_layer(dim, heads, 4 * dim, True) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.size(0), -1, -1), x), dim=1) + self.positions
        out: Tensor = self.head(self.norm(self.layers(x))[:, 0])
        return out


class LSTMClassifier(nn.Module):
    """Two-layer LSTM classified at its last step: [N,T,features] -> [N,num_classes]."""

    def __init__(self, num_classes: int = 10, features: int = 256, hidden: int = 512) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, hidden, num_layers=2, batch_first=True)
        self.classifier = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        steps, _ = self.lstm(x)
        out: Tensor = self.classifier(steps[:, -1])
        return out
