"""Sums, products, joins, activations, normalizations."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ...base.op import Call
from ..kernels.calls import Int8Call
from ..kernels.fp32 import no_kernels
from ..kernels.pointwise import batch_norm, binary, cat, elementwise, elementwise_pair, elu, fixed, silu
from .binding import X86Binding

Q = torch.ops.quantized

IN_FP32_INSIDE = "the int8 kernel computes in fp32 inside; fp32 at once is faster and more exact"


def _refuse_axes(call: Call) -> str | None:
    shapes = [call.values[a].shape for a in call.node.args if isinstance(a, fx.Node)]
    differ = len(shapes) == 2 and len(shapes[0]) != len(shapes[1])
    return "its operands have different numbers of axes" if differ else None


def _slope(call: Int8Call) -> tuple[Any, ...]:
    return call.kwargs.get("negative_slope", 0.01), False


def _layer_norm(call: Int8Call) -> tuple[Any, ...]:
    norm: Any = call.module
    return list(norm.normalized_shape), norm.weight, norm.bias, norm.eps


def _group_norm(call: Int8Call) -> tuple[Any, ...]:
    norm: Any = call.module
    return norm.num_groups, norm.weight, norm.bias, norm.eps


def _instance_norm(call: Int8Call) -> tuple[Any, ...]:
    norm: Any = call.module
    return norm.weight, norm.bias, norm.eps


BINDINGS = {
    "add": X86Binding(kernels=binary(Q.add.default), refuse=_refuse_axes),
    "mul": X86Binding(kernels=binary(Q.mul.default), refuse=_refuse_axes),
    "matmul": X86Binding(kernels=elementwise_pair(Q.matmul.default), prefer_fp32=IN_FP32_INSIDE),
    "cat": X86Binding(kernels=cat),
    "stack": X86Binding(kernels=cat),
    **dict.fromkeys(("relu", "relu6", "hardtanh", "clamp"), X86Binding()),
    "hardswish": X86Binding(kernels=elementwise(Q.hardswish.default)),
    "leaky_relu": X86Binding(kernels=elementwise(Q.leaky_relu.default, extra=_slope)),
    "sigmoid": X86Binding(kernels=elementwise(Q.sigmoid.default)),
    "hardsigmoid": X86Binding(kernels=fixed(torch.ops.aten.hardsigmoid.default)),
    "tanh": X86Binding(kernels=fixed(torch.ops.aten.tanh.default)),
    "elu": X86Binding(kernels=elu),
    "prelu": X86Binding(kernels=no_kernels, reason="the int8 kernel rounds its slopes, too"),
    "silu": X86Binding(kernels=silu),
    "softmax": X86Binding(kernels=elementwise(Q.softmax.default, "dim"), prefer_fp32=IN_FP32_INSIDE),
    **{f"batch_norm{d}d": X86Binding(kernels=batch_norm(getattr(Q, f"batch_norm{d}d").default)) for d in (1, 2, 3)},
    "layer_norm": X86Binding(kernels=elementwise(Q.layer_norm.default, extra=_layer_norm), prefer_fp32=IN_FP32_INSIDE),
    "group_norm": X86Binding(kernels=elementwise(Q.group_norm.default, extra=_group_norm), prefer_fp32=IN_FP32_INSIDE),
    **dict.fromkeys(
        [f"instance_norm{d}d" for d in (1, 2, 3)],
        X86Binding(kernels=elementwise(Q.instance_norm.default, extra=_instance_norm), prefer_fp32=IN_FP32_INSIDE),
    ),
}
