"""Models that int8 ruins."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import fxquant

PLAIN: dict[str, Any] = dict.fromkeys(("equalize", "smooth", "absorb_bias", "correct_bias"), False)


def row_of(q: fxquant.QuantizedModule) -> dict[str, fxquant.Row]:
    return {row.node: row for row in q.report.rows}


def ruinous() -> nn.Sequential:
    """The weights of layer 4 are far apart within each of its output channels: int8 rounds most of them to zero."""
    layers = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Flatten())
    model = nn.Sequential(*layers, nn.Linear(128, 5)).eval()
    with torch.no_grad():
        model.get_parameter("2.bias")[0] = -100.0  # a channel that is always zero, but has the largest weights
        model.get_parameter("4.weight")[:, 0] = 1000.0
    return model
