"""Linear layers whose input is quantized on the fly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...base import IntegerWeight
from ...dynamic import DynamicLayer, Layer
from ..calls import qint8
from ..engine import FBGEMM, engine

Q = torch.ops.quantized


def packed_linear(weight: IntegerWeight | Tensor, bias: Tensor | None) -> Any:
    """A matrix (outputs, inputs), int8 or fp16, and its bias, packed for fbgemm."""
    with engine(FBGEMM):
        if isinstance(weight, IntegerWeight):
            return Q.linear_prepack(qint8(weight), bias)
        return Q.linear_prepack_fp16(weight.float(), bias)


class DynamicLinear(DynamicLayer):
    """``nn.Linear``, with a ReLU behind it where the layer says so: (..., in) to (..., out)."""

    def __init__(self, layer: Layer) -> None:
        half = layer.dtype == torch.float16
        name = f"linear_{'relu_' if layer.relu else ''}dynamic{'_fp16' if half else ''}"
        super().__init__(layer, f"quantized::{name} ({FBGEMM})")
        self.packed = packed_linear(layer.weights["weight"], layer.vector("bias"))
        self.half_weights = half

    def forward(self, input: Tensor) -> Tensor:
        return self.multiply(input) if input.dim() > 1 else self.multiply(input.unsqueeze(0)).squeeze(0)

    def multiply(self, input: Tensor) -> Tensor:
        """The kernel, for inputs of two axes or more. TorchScript compiles this, too: each op by its full name."""
        if self.half_weights:
            if self.relu:
                return torch.ops.quantized.linear_relu_dynamic_fp16(input, self.packed)
            return torch.ops.quantized.linear_dynamic_fp16(input, self.packed)
        if self.relu:
            return torch.ops.quantized.linear_relu_dynamic(input, self.packed)
        return torch.ops.quantized.linear_dynamic(input, self.packed)
