"""Our own ops in torch's dispatcher, ``torch.ops.fxquant``, so that every executor can call them."""

from __future__ import annotations

import torch
from torch import Tensor

from .engine import QNNPACK, run_under

_library = torch.library.Library("fxquant", "DEF")

_library.define("silu(Tensor x, float scale, int zero_point) -> Tensor")

_library.define(
    "conv2d_activation(Tensor x, Tensor weight, Tensor w_scale, Tensor w_zero_point, Tensor? bias, int[] stride, "
    "int[] padding, int[] dilation, int groups, float scale, int zero_point, str activation) -> Tensor"
)


def bytes_of(q: Tensor) -> Tensor:
    """The integers of a quint8 tensor as uint8, sharing its memory."""
    return torch.empty(0, dtype=torch.uint8).set_(q.untyped_storage(), q.storage_offset(), q.size(), q.stride())


def from_bytes(x: Tensor, scale: float, zero_point: int) -> Tensor:
    """A quint8 tensor over the memory of ``x`` (uint8)."""
    empty = torch._empty_affine_quantized((0,), scale=scale, zero_point=zero_point, dtype=torch.quint8)
    return empty.set_(x.untyped_storage(), x.storage_offset(), x.size(), x.stride())


@torch.library.impl(_library, "silu", "QuantizedCPU")
def silu(x: Tensor, scale: float, zero_point: int) -> Tensor:
    """``x * sigmoid(x)``: QNNPACK takes the sigmoid of an integer from a table of 256 values."""
    gate = run_under(QNNPACK, torch.ops.aten.sigmoid.default, x)
    return torch.ops.quantized.mul.default(x, gate, scale, zero_point)


@torch.library.impl(_library, "conv2d_activation", "MkldnnCPU")  # the packed weight's key comes first
def conv2d_activation(
    x: Tensor, weight: Tensor, w_scale: Tensor, w_zero_point: Tensor, bias: Tensor | None,
    stride: list[int], padding: list[int], dilation: list[int], groups: int,
    scale: float, zero_point: int, activation: str,
) -> Tensor:  # fmt: skip
    """oneDNN's convolution with an activation as post-op; ``weight`` is packed by ``onednn::qconv_prepack``."""
    result = torch.ops.onednn.qconv2d_pointwise.default(
        bytes_of(x), x.q_scale(), x.q_zero_point(), weight, w_scale, w_zero_point, bias,
        stride, padding, dilation, groups, scale, zero_point, torch.uint8, activation, [], "",
    )  # fmt: skip
    return from_bytes(result, scale, zero_point)
