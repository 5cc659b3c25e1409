"""A small model, every workflow on it, and the state of the process that must not change."""

from __future__ import annotations

import random
import signal
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant import QATModule, QuantConfig


class Net(nn.Module):
    """Two convolutions, a residual, a gate, a linear layer, and a hook that belongs to the user."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.body, self.wide = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 16, 1)
        self.last = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.silu(self.body(x)) + x
        out: Tensor = self.last(F.relu(self.wide(x)).mean((2, 3)))
        return out


torch.manual_seed(0)
NET = Net().eval()
NET.stem.register_forward_hook(lambda *_: None)
DATA = [torch.randn(2, 3, 12, 12) for _ in range(2)]


def train(q: QATModule) -> None:
    optimizer = torch.optim.SGD(q.parameters(), 1e-3)
    for x in DATA:
        optimizer.zero_grad()
        q(x).square().mean().backward()
        optimizer.step()


def nearness(module: nn.Module) -> float:
    return -float((module(DATA[0]) - NET(DATA[0])).square().mean())


WORKFLOWS: dict[str, Callable[[], Any]] = {
    "static": lambda: fxquant.compile(NET, calibration=DATA),
    "dynamic": lambda: fxquant.compile(NET, "dynamic")(DATA[0]),
    "qat": lambda: fxquant.compile(NET, "qat", calibration=DATA, train=train),
    "search": lambda: fxquant.search(NET, DATA, nearness, max_drop=1.0),
    "learned": lambda: fxquant.compile(
        NET, calibration=DATA, config=QuantConfig(rounding="learned", rounding_seconds=0.5)
    ),
    "sensitivity": lambda: fxquant.sensitivity(NET, DATA),
}


def state() -> dict[str, Any]:
    """What must be as before, whatever happened."""
    return {
        "engine": torch.backends.quantized.engine,
        "grad": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "threads": torch.get_num_threads(),
        "call": nn.Module.__call__,
        "getattr": nn.Module.__getattr__,
        "tracing": torch.fx._symbolic_trace._is_fx_tracing_flag,
        "filters": [repr(f) for f in warnings.filters],
        "torch": torch.get_rng_state().numpy().tobytes(),
        "python": random.getstate(),
        "numpy": repr(np.random.get_state()),
        "handler": signal.getsignal(signal.SIGINT),
        "model": {k: v.sum().item() for k, v in NET.state_dict().items()},
        "modes": [m.training for m in NET.modules()],
        "hooks": [len(m._forward_hooks) for m in NET.modules()],
        "gradients": [p.requires_grad for p in NET.parameters()],
    }
