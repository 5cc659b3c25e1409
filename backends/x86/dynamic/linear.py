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
        half = "_fp16" if layer.dtype == torch.float16 else ""
        name = f"linear_{'relu_' if layer.relu else ''}dynamic{half}"
        super().__init__(layer, f"quantized::{name} ({FBGEMM})")
        self.packed = packed_linear(layer.weights["weight"], layer.vector("bias"))
        # The handle below OpOverload.__call__, which only forwards to it.
        self._op = getattr(Q, name).default._op

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() == 1:
            return self.forward(input[None])[0]
        result: Tensor = self._op(input, self.packed)
        return result
