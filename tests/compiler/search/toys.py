"""A model with fragile layers and a measure of it, which worker processes can import."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fxquant
from fxquant import QuantConfig, SearchResult

LAYERS = ("0", "2", "4", "6", "8", "10")
FRAGILE = ("2", "8")
BUDGET = 0.05


def model() -> nn.Sequential:
    """Six convolutions: [N,3,12,12] -> [N,8,12,12]."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs in (3, 8, 8, 8, 8, 8):
        layers += [nn.Conv2d(inputs, 8, 3, padding=1), nn.ReLU()]
    net = nn.Sequential(*layers[:-1])
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(2)
    return net.eval()


def batches(count: int = 3, seed: int = 1) -> list[Tensor]:
    return [torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(seed + i)) for i in range(count)]


def config() -> QuantConfig:
    """Two bits for the fragile layers."""
    return QuantConfig(overrides={path: QuantConfig(weight_bits=2) for path in FRAGILE})


def closeness(module: nn.Module) -> float:
    """Minus the relative error of the output on data that calibration has not seen; 0 for the float model."""
    exact = model()
    with torch.no_grad():
        error = sum(float((module(x) - exact(x)).square().sum()) for x in batches(3, seed=100))
        power = sum(float(exact(x).square().sum()) for x in batches(3, seed=100))
    return 0.0 - error / power


def found(evaluate: Callable[[nn.Module], Any] = closeness, max_drop: float = BUDGET, **options: Any) -> SearchResult:
    return fxquant.search(model(), batches(), evaluate, max_drop, **({"config": config()} | options))


class Counting:
    """:func:`closeness`, and how often it was called; it raises ``error`` in call number ``at``."""

    def __init__(self, error: BaseException | None = None, at: int = 0) -> None:
        self.calls, self.error, self.at = 0, error, at

    def __call__(self, module: nn.Module) -> float:
        self.calls += 1
        if self.error is not None and self.calls == self.at:
            raise self.error
        return closeness(module)
