"""How many products a model has, and how many int8 products the machine does at most."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

import fxquant


def products(model: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """Products of all convolutions and linear layers in one call."""
    total = 0.0

    def count(layer: Any, args: Any, output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.ConvTranspose2d):
            total += args[0].numel() * layer.weight[0].numel()
        else:
            total += output.numel() * layer.weight[0].numel()

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, kinds)]
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return total


def int8_peak(threads: int) -> float:
    """The most int8 products in 1 ms: those of a chain of matrix products whose weights stay in the cache.

    The best of many short runs, as the machine is shared.
    """
    torch.set_num_threads(threads)
    layers = [nn.Linear(512, 512, bias=False) for _ in range(8)]
    model = nn.Sequential(*layers).eval()
    x = torch.randn(504, 512)
    q = fxquant.compile(model, calibration=[x], config=fxquant.QuantConfig(mixed_precision=False, observer="minmax"))
    best = float("inf")
    with torch.inference_mode():
        for _ in range(200):
            start = time.perf_counter()
            q(x)
            best = min(best, time.perf_counter() - start)
    return len(layers) * x.shape[0] * 512 * 512 / (1e3 * best)
