"""Pools, and ops that move values: torch runs them on quantized tensors as they are."""

from __future__ import annotations

from ...base.op import Call
from ..kernels.fp32 import no_kernels
from .binding import X86Binding

AVERAGES = "the int8 kernel keeps the scale of its input, which is too coarse for averages"


def _refuse_pad(call: Call) -> str | None:
    mode = call.param("mode", "constant")
    if mode not in ("constant", "reflect"):
        return f"no int8 kernel for mode={mode!r}"
    other = mode == "constant" and call.param("value", 0) not in (0, None)
    return "no int8 kernel with another value than 0" if other else None


def _refuse_interpolate(call: Call) -> str | None:
    mode = call.param("mode", "nearest")
    if mode not in ("nearest", "bilinear"):
        return f"no int8 kernel for mode={mode!r}"
    images = call.input is None or len(call.input.shape) == 4
    return None if images else "its int8 kernel takes images only"


BINDINGS = {
    **dict.fromkeys(
        (
            "max_pool1d", "max_pool2d",
            "reshape", "flatten", "unflatten", "permute", "transpose", "squeeze", "unsqueeze",
            "select", "narrow", "chunk", "split", "getitem", "clone",
            "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
        ),
        X86Binding(),
    ),
    "pad": X86Binding(refuse=_refuse_pad),
    "interpolate": X86Binding(refuse=_refuse_interpolate, copies=True),
    **dict.fromkeys(
        (*(f"{kind}_pool{d}d" for kind in ("avg", "adaptive_avg") for d in (1, 2, 3)), "mean"),
        X86Binding(kernels=no_kernels, reason=AVERAGES),
    ),
}  # fmt: skip
