"""Linear layers whose input is quantized at run time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ....base.dynamic_layer import DynamicLayer
from ....base.dynamic_spec import DynamicSpec
from ....base.weights import IntegerWeight
from ...runtime.engine import FBGEMM, run_under
from ..calls import qint8
from .steps import multiply

Q = torch.ops.quantized


def packed_linear(weight: IntegerWeight | Tensor, bias: Tensor | None) -> Any:
    """A matrix (outputs, inputs), int8 or fp16, and its bias, packed for fbgemm."""
    if isinstance(weight, IntegerWeight):
        return run_under(FBGEMM, Q.linear_prepack, qint8(weight), bias)
    return run_under(FBGEMM, Q.linear_prepack_fp16, weight.float(), bias)


class DynamicLinear(DynamicLayer):
    """``nn.Linear``, with the ReLU after it if the specification has one: (..., in) to (..., out)."""

    def __init__(self, spec: DynamicSpec) -> None:
        half = "_fp16" if spec.dtype == torch.float16 else ""
        super().__init__(spec, f"quantized::linear_{'relu_' if spec.relu else ''}dynamic{half} ({FBGEMM})")
        self.packed = packed_linear(spec.weights["weight"], spec.vector("bias"))

    def forward(self, input: Tensor) -> Tensor:
        return self.product(input) if input.dim() > 1 else self.product(input.unsqueeze(0)).squeeze(0)

    def product(self, input: Tensor) -> Tensor:
        """The kernel, for inputs of two axes or more."""
        # TorchScript compiles this: ops are called by their full names.
        if self.relu:
            if self.is_half:
                return torch.ops.quantized.linear_relu_dynamic_fp16(input, self.packed)
            return torch.ops.quantized.linear_relu_dynamic(input, self.packed)
        return multiply(input, self.packed, self.is_half)

    def unpacked(self, name: str) -> Tensor | None:
        unpack = Q.linear_unpack_fp16 if self.is_half else Q.linear_unpack
        weight, bias = unpack(self.packed)
        if name == "bias":
            return bias
        return weight.dequantize() if weight.is_quantized else weight.float()
