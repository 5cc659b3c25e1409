"""All bindings by the name of the op. An op that is missing stays in fp32."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ...base.binding import Binding
from ...base.op import Call
from ...base.windows import is_pointwise
from ...ops.embedding import refuse_bag, refuse_changing_table

BETWEEN = "it computes in fp32 inside"
FEW_PRODUCTS = 128  # of each input value: quantizing it costs more than they gain


def _refuse_window(module: nn.Module) -> str | None:
    """Why a convolution cannot quantize its input at run time."""
    conv: Any = module
    return None if conv.padding_mode == "zeros" else f"no kernel with padding_mode={conv.padding_mode!r}"


def prefer_float(module: nn.Module) -> str | None:
    """Why a layer does not quantize its input at run time, though it could."""
    conv: Any = module
    if not hasattr(conv, "kernel_size") or is_pointwise(conv):
        return None
    products = conv.out_channels // conv.groups * math.prod(conv.kernel_size) // math.prod(conv.stride)
    if products < FEW_PRODUCTS:
        return f"faster in fp32: {products} products for each value to be quantized, fewer than {FEW_PRODUCTS}"
    return None


def _refuse_transposed(call: Call) -> str | None:
    if call.param("groups", 1) > 1:
        return "no int8 kernel for a transposed convolution with groups"
    if any(d != 1 for d in _each(call.param("dilation", 1))):
        return "no int8 kernel with dilation"
    window, stride = (_each(call.param(name, 1)) for name in ("kernel_size", "stride"))
    small = any(k < s for k, s in zip(window, stride, strict=False))
    return "no int8 kernel for a window smaller than its stride" if small else None


def _refuse_pool(call: Call) -> str | None:
    dilation = call.param("dilation", 1)
    return "no int8 kernel with dilation" if any(d != 1 for d in _each(dilation)) else None


def _refuse_average(call: Call) -> str | None:
    if call.param("divisor_override") is not None:
        return "no int8 kernel with a divisor of its own"
    if call.param("ceil_mode", False):
        return "no int8 kernel with ceil_mode"
    padded = any(_each(call.param("padding", 0))) and not call.param("count_include_pad", True)
    return "no int8 kernel that leaves padding out of the average" if padded else None


def _refuse_interpolate(call: Call) -> str | None:
    mode = call.param("mode", "nearest")
    if mode != "nearest":
        return f"no int8 kernel for mode={mode!r}"
    given, made = call.input, call.values.get(call.node)
    if given is None or made is None or any(b % a for a, b in zip(given.shape, made.shape, strict=True)):
        return "no int8 kernel for a factor that is not whole"
    return None


def _refuse_pad(call: Call) -> str | None:
    mode, sides = call.param("mode", "constant"), call.param("pad")
    if mode != "constant":
        return f"no int8 kernel for mode={mode!r}"
    if call.param("value", 0) not in (0, None):
        return "no int8 kernel with another value than 0"
    return "no int8 kernel that cuts off" if min(sides) < 0 else None


def _refuse_slope(call: Call) -> str | None:
    slope = call.param("negative_slope", 0.01)
    return None if 0 <= slope <= 1 else "no int8 kernel for a slope outside of 0 to 1"


def _each(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


BINDINGS: Mapping[str, Binding] = {
    **{f"conv{d}d": Binding() for d in (1, 2, 3)},
    **{f"conv_transpose{d}d": Binding(refuse=_refuse_transposed) for d in (1, 2, 3)},
    "linear": Binding(float_output=True),
    **dict.fromkeys(("add", "mul", "cat", "relu", "relu6", "hardtanh", "clamp"), Binding()),
    **dict.fromkeys(
        ("hardswish", "hardsigmoid", "sigmoid", "tanh", "silu", "elu", "prelu", "stack"), Binding(reason=BETWEEN)
    ),
    **dict.fromkeys(("layer_norm", "softmax"), Binding(prefer_fp32=BETWEEN)),
    "leaky_relu": Binding(refuse=_refuse_slope),
    **{f"batch_norm{d}d": Binding(reason=BETWEEN) for d in (1, 2, 3)},
    **{f"max_pool{d}d": Binding(refuse=_refuse_pool) for d in (1, 2, 3)},
    **{f"avg_pool{d}d": Binding(refuse=_refuse_average) for d in (1, 2, 3)},
    **{f"adaptive_avg_pool{d}d": Binding() for d in (1, 2, 3)},
    "mean": Binding(),
    **dict.fromkeys(
        (
            "reshape", "flatten", "unflatten", "permute", "transpose", "squeeze", "unsqueeze", "select", "narrow",
            "chunk", "split", "getitem", "clone", "channel_shuffle", "pixel_shuffle", "pixel_unshuffle",
        ),
        Binding(),
    ),
    "interpolate": Binding(refuse=_refuse_interpolate),
    "pad": Binding(refuse=_refuse_pad),
}  # fmt: skip

# Why a layer cannot have weights of int8 or fp16, by op.
REFUSALS: Mapping[str, Callable[[nn.Module], str | None]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _refuse_window),
    "embedding": refuse_changing_table,
    "embedding_bag": refuse_bag,
}
