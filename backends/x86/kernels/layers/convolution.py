"""Pointwise convolutions as linear layers over the channels.

torch's own dynamic convolutions round their output to the range of their input, which clips it (pytorch#70480).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ....base.dynamic_spec import DynamicSpec, RoundedWeight
from ....base.weights import IntegerWeight
from ....base.windows import is_pointwise
from .linear import DynamicLinear


def refuse_window(module: nn.Module) -> str | None:
    """Why a convolution cannot be a linear layer over the channels."""
    if is_pointwise(module):
        return None
    return "only for kernel size 1, one group and no padding: torch's other dynamic convolutions clip (pytorch#70480)"


class PointwiseConv(DynamicLinear):
    """``nn.Conv1d`` to ``nn.Conv3d`` with kernel size 1 and one group: (N, in, *) to (N, out, *), N optional."""

    def __init__(self, spec: DynamicSpec) -> None:
        conv: Any = spec.layer
        weight = spec.weights["weight"]
        if isinstance(weight, IntegerWeight):
            matrix: RoundedWeight = replace(weight, integers=weight.integers.flatten(1))
        else:
            matrix = weight.flatten(1)
        super().__init__(replace(spec, weights={"weight": matrix}))
        self.strides: list[int] = list(conv.stride)

    def forward(self, input: Tensor) -> Tensor:
        given, axes = input, len(self.strides)
        for i, stride in enumerate(self.strides):
            if stride > 1:
                given = torch.ops.aten.slice(given, i - axes, None, None, stride)
        result = self.product(given.movedim(-axes - 1, -1)).movedim(-1, -axes - 1)
        # The memory layout that the float layer gives: a view after it may need it.
        if axes == 2 and input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last):
            return result
        return result.contiguous()
