"""Reasons why a call of an op with a kernel cannot be int8 after all."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from ..base import Call


def refuse_padding(conv: Any) -> str | None:
    """Padding that no int8 convolution has."""
    if conv.padding_mode != "zeros":
        return f"no int8 kernel with padding_mode={conv.padding_mode!r}"
    if conv.padding == "same" and any(d * (k - 1) % 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)):
        return "padding='same' of an even kernel pads each side differently"
    return None


def refuse_conv(call: Call) -> str | None:
    """Padding the kernels do not have; inputs without a batch axis."""
    reason = refuse_padding(call.module) if call.module else None
    if reason:
        return reason
    if call.module is not None and (len(call.node.args) > 1 or call.node.kwargs):
        return "it is called with an output size"
    kernel = call.param("kernel_size", ())
    if call.input is not None and len(call.input.shape) != len(kernel) + 2:
        return "its input has no batch axis"
    groups, weight = call.param("groups", 1), getattr(call.module, "weight", None)
    if call.param("transposed", False) and groups > 1 and isinstance(weight, Tensor):
        return "no int8 kernel for a transposed convolution with groups"
    return None


def refuse_binary(call: Call) -> str | None:
    """Operands that are no fp32 tensors and no numbers; ``alpha``."""
    if call.param("alpha", 1) != 1:
        return "no int8 kernel with alpha"
    others = [a for a in call.node.args if isinstance(a, fx.Node) and a not in call.values]
    if others:
        return f"its operand '{others[0].name}' is a size"
    shapes = [call.values[a].shape for a in call.node.args if isinstance(a, fx.Node)]
    if len(shapes) == 2 and shapes[0] != shapes[1] and len(shapes[0]) != len(shapes[1]):
        return "its operands have different numbers of axes"
    return None


def refuse_batch_norm(call: Call) -> str | None:
    """The kernel needs running statistics."""
    return "it keeps no running statistics" if call.param("running_mean") is None else None


def refuse_float_argument(call: Call) -> str | None:
    """A clamp whose bounds are tensors."""
    bounds = (call.param("min"), call.param("max"))
    if any(isinstance(b, fx.Node) for b in bounds):
        return "its bounds are tensors"
    return None


def refuse_pool(call: Call) -> str | None:
    """Indices are not kept by the int8 kernel."""
    return "no int8 kernel with return_indices" if call.param("return_indices", False) else None


def refuse_pad(call: Call) -> str | None:
    """The kernels pad with zeros or by reflection."""
    mode = call.param("mode", "constant")
    if mode not in ("constant", "reflect"):
        return f"no int8 kernel for mode={mode!r}"
    if mode == "constant" and call.param("value", 0) not in (0, None):
        return "no int8 kernel with another value than 0"
    return None


def pad_of_module(module: Any) -> dict[str, Any]:
    """The call of ``F.pad`` that a padding module makes."""
    mode = "reflect" if isinstance(module, nn.ReflectionPad2d) else "constant"
    return {"pad": module.padding, "mode": mode, "value": getattr(module, "value", None)}


def refuse_interpolate(call: Call) -> str | None:
    """Nearest and bilinear have kernels."""
    mode = call.param("mode", "nearest")
    if mode not in ("nearest", "bilinear"):
        return f"no int8 kernel for mode={mode!r}"
    if call.input is not None and len(call.input.shape) != 4:
        return "no int8 kernel but for images"
    return None
