"""Which calls of convolutions are refused."""

from __future__ import annotations

from typing import Any

from ..base.op import Call


def refuse_convolution(call: Call) -> str | None:
    """Refuse padding modes that the function lacks, an output size, and an input without a batch axis."""
    conv: Any = call.module
    if conv is not None:
        reason = refuse_padding(conv)
        if reason:
            return reason
        if len(call.node.args) > 1 or call.node.kwargs:
            return "it is called with an output size"
    if call.input is not None and len(call.input.shape) != len(call.param("kernel_size", ())) + 2:
        return "its input has no batch axis"
    return None


def refuse_padding(conv: Any) -> str | None:
    """Refuse padding that differs at both ends of an axis."""
    if conv.padding_mode != "zeros":
        return f"no int8 kernel with padding_mode={conv.padding_mode!r}"
    if conv.padding == "same" and any(d * (k - 1) % 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)):
        return "padding='same' of an even kernel pads each side differently"
    return None
