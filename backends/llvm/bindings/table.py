"""All bindings by the name of the op. An op that is missing stays in fp32, and torch runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...base.binding import Binding
from ...base.op import Call

BETWEEN = "its integers are computed in fp32 registers"


def _refuse_transposed(call: Call) -> str | None:
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
    **dict.fromkeys(("hardswish", "hardsigmoid", "sigmoid", "tanh", "silu"), Binding(reason=BETWEEN)),
    "leaky_relu": Binding(refuse=_refuse_slope),
    **{f"batch_norm{d}d": Binding(reason=BETWEEN) for d in (1, 2, 3)},
    **{f"max_pool{d}d": Binding(refuse=_refuse_pool) for d in (1, 2, 3)},
    **{f"avg_pool{d}d": Binding(refuse=_refuse_average) for d in (1, 2, 3)},
    **{f"adaptive_avg_pool{d}d": Binding() for d in (1, 2, 3)},
    "mean": Binding(),
    **dict.fromkeys(
        (
            "reshape", "flatten", "unflatten", "permute", "transpose", "squeeze", "unsqueeze", "select", "narrow",
            "chunk", "split", "getitem", "clone", "channel_shuffle",
        ),
        Binding(),
    ),
}  # fmt: skip
