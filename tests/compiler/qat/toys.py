"""A small model in training."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import fxquant
from fxquant import QATModule
from fxquant.compiler.cli.demo import load_digits

from ..toys import data, small


def prepared(model: nn.Module | None = None, **options: Any) -> QATModule:
    options = {"backend": "reference", "calibration": data(), **options}
    return fxquant.prepare(model or small(), scheme="qat", **options)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), 1e-3)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int = 0) -> float:
    """One step towards given outputs. Returns the loss."""
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    loss = F.mse_loss(model(x), x.flatten(1)[:, :5].sigmoid())
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(channels, 10)]


def fit(model: nn.Module, rate: float, epochs: int) -> None:
    pictures, labels = load_digits().train
    steps = epochs * len(pictures) // 50
    optimizer = torch.optim.Adam(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
    if isinstance(model, QATModule):
        model.freeze_observers(after=0.6, steps=steps)
        model.freeze_batchnorm(after=0.6, steps=steps)
    model.train()
    for _ in range(epochs):
        for part in torch.randperm(len(labels)).split(50):
            optimizer.zero_grad()
            F.cross_entropy(model(pictures[part]), labels[part]).backward()
            optimizer.step()
            schedule.step()
    model.eval()
