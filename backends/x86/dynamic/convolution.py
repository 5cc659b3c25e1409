"""Pointwise convolutions as linear layers over the channels.

torch's own dynamic convolutions round their output to the range of their input, which clips it (pytorch#70480).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...base import IntegerWeight
from ...dynamic import Layer
from .linear import DynamicLinear


def refuse_conv(module: nn.Module) -> str | None:
    """Why a convolution has no form here."""
    conv: Any = module
    pointwise = all(k == 1 for k in conv.kernel_size) and conv.groups == 1
    if pointwise and (conv.padding in ("same", "valid") or not any(conv.padding)):
        return None
    return "torch's dynamic convolutions clip their output (pytorch#70480): give it calibration data, scheme 'static'"


class PointwiseConv(DynamicLinear):
    """``nn.Conv1d`` to ``nn.Conv3d`` with a window of 1 and one group: (N, in, *) to (N, out, *), or without N."""

    def __init__(self, layer: Layer) -> None:
        conv: Any = layer.module
        weight = layer.weights["weight"]
        if isinstance(weight, IntegerWeight):
            matrix: IntegerWeight | Tensor = replace(weight, integers=weight.integers.flatten(1))
        else:
            matrix = weight.flatten(1)
        super().__init__(replace(layer, weights={"weight": matrix}))
        self.steps: list[int] = list(conv.stride)

    def forward(self, input: Tensor) -> Tensor:
        given, axes = input, len(self.steps)
        for i, step in enumerate(self.steps):
            if step > 1:
                given = torch.ops.aten.slice(given, i - axes, None, None, step)
        result = self.multiply(given.movedim(-axes - 1, -1)).movedim(-1, -axes - 1)
        # A view behind the float layer expects the layout that this gives.
        return result.contiguous() if input.is_contiguous() else result
