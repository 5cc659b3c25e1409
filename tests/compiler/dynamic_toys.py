"""Small models with dynamic weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fxquant
from fxquant import QuantConfig, QuantizedModule
from fxquant.compiler.numerics.metrics import sqnr


class Tagger(nn.Module):
    """A bit of everything that has weights: int64 [N,T] -> [N,T,5]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.lstm = nn.LSTM(32, 64, batch_first=True)
        self.body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 48))
        self.head = nn.Linear(48, 5)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(self.lstm(self.embedding(ids))[0]))
        return out


class Branching(nn.Module):
    """Cannot be traced: its way depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.up(x)
        if x.mean() > 0:
            x = x * 2
        if mask is not None:
            x = x * mask
        out: Tensor = self.down(x)
        return out

    def twice(self, x: Tensor) -> Tensor:
        return self(self(x))


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build().eval()


def dynamic(model: nn.Module, **options: Any) -> QuantizedModule:
    return fxquant.compile(model, scheme="dynamic", **options)


def near(model: nn.Module, q: nn.Module, *args: Any, least: float = 28, **kwargs: Any) -> None:
    with torch.no_grad():
        expected = model(*args, **kwargs)
    for _ in range(3):  # the first call checks TorchScript, the second uses it, the third is optimized
        assert sqnr([expected], [q(*args, **kwargs)]) > least


def rows(q: QuantizedModule) -> dict[str, fxquant.Row]:
    return {row.node: row for row in q.report.rows}


def overrides(**entries: Any) -> QuantConfig:
    return QuantConfig(overrides=dict[Any, Any](entries))
