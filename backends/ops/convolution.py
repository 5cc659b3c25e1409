"""The padding of convolutions, and which calls are refused."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..base.op import Call


def padding_of(conv: Any) -> tuple[int, ...]:
    """The padding of a convolution in integers, one for each axis of its window."""
    if conv.padding == "same":  # refused if the two sides differ
        return tuple(d * (k - 1) // 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    return (0,) * len(conv.kernel_size) if conv.padding == "valid" else tuple(conv.padding)


def is_pointwise(module: nn.Module) -> bool:
    """Whether a convolution is a linear layer over the channels of each pixel."""
    conv: Any = module
    return all(k == 1 for k in conv.kernel_size) and conv.groups == 1 and not any(padding_of(conv))


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
