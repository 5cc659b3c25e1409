"""Convolutions whose input is quantized on the fly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ....compiler.normalize import padding_of
from ...dynamic import DynamicLayer, Layer
from ..calls import qint8
from ..engine import FBGEMM, engine
from ..refusals import refuse_padding

Q = torch.ops.quantized


def refuse_conv(module: nn.Module) -> str | None:
    """Why a convolution has no form here."""
    conv: Any = module
    if conv.groups == conv.in_channels > 1:
        return "depthwise: it reads few weights, and int8 saves less than quantizing its input costs"
    return refuse_padding(conv)


class DynamicConv(DynamicLayer):
    """``nn.Conv1d``, ``nn.Conv2d`` or ``nn.Conv3d`` with int8 weights, and a ReLU where the layer says so."""

    def __init__(self, layer: Layer) -> None:
        name = layer.rule.name
        super().__init__(layer, f"quantized::{name}_dynamic ({FBGEMM})")
        conv: Any = layer.module
        weight = qint8(layer.integers["weight"])
        options = (list(conv.stride), list(padding_of(conv)), list(conv.dilation), conv.groups)
        with engine(FBGEMM):
            self.packed = getattr(Q, f"{name}_prepack")(weight, layer.vector("bias"), *options)
        self._op = getattr(Q, f"{name}_dynamic").default._op
        self._axes = len(conv.kernel_size) + 2

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() == self._axes - 1:
            return self.forward(input[None])[0]
        result: Tensor = self._op(input, self.packed)
        # The kernel gives channels_last; a view behind the float layer expects what that gives.
        result = result.contiguous() if input.is_contiguous() else result
        return result.relu_() if self.relu else result
