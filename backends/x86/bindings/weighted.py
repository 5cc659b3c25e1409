"""Convolutions, linear layers, embeddings, recurrent layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...base.op import Call
from ...ops.embedding import refuse_bag, refuse_changing_table
from ..kernels import layers
from ..kernels.convolution import conv, conv_transpose
from ..kernels.fused_convolution import conv2d_activation, conv2d_add
from ..kernels.linear import embedding, linear, linear_activation
from .binding import X86Binding

Q = torch.ops.quantized


def _refuse_transposed_groups(call: Call) -> str | None:
    groups, weight = call.param("groups", 1), getattr(call.module, "weight", None)
    grouped = groups > 1 and isinstance(weight, Tensor)
    return "no int8 kernel for a transposed convolution with groups" if grouped else None


def _convolution(dims: int) -> X86Binding:
    fused: dict[str, Any] = {
        "add": conv2d_add,
        "hardswish": conv2d_activation("hardswish"),
        "silu": conv2d_activation("swish"),
    }
    return X86Binding(
        kernels=conv(dims),
        fused=fused if dims == 2 else {},
        dynamic=layers.PointwiseConv,
        refuse_dynamic=layers.refuse_window,
    )


def _transposed_convolution(dims: int) -> X86Binding:
    return X86Binding(per_channel=False, refuse=_refuse_transposed_groups, kernels=conv_transpose(dims))


BINDINGS = {
    **{f"conv{dims}d": _convolution(dims) for dims in (1, 2, 3)},
    **{f"conv_transpose{dims}d": _transposed_convolution(dims) for dims in (1, 2, 3)},
    "linear": X86Binding(
        float_output=True,
        dynamic=layers.DynamicLinear,
        kernels=linear,
        fused={
            "leaky_relu": linear_activation(Q.linear_leaky_relu.default, "negative_slope"),
            "tanh": linear_activation(Q.linear_tanh.default),
        },
    ),
    "embedding": X86Binding(kernels=embedding, dynamic=layers.RowwiseEmbedding, refuse_dynamic=refuse_changing_table),
    "embedding_bag": X86Binding(False, dynamic=layers.RowwiseEmbeddingBag, refuse_dynamic=refuse_bag),
    **dict.fromkeys(
        ("lstm", "gru"),
        X86Binding(False, dynamic=layers.DynamicRecurrent, refuse_dynamic=layers.refuse_projections),
    ),
    **dict.fromkeys(("lstmcell", "grucell", "rnncell"), X86Binding(False, dynamic=layers.DynamicCell)),
}
