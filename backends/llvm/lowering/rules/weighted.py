"""Convolutions and linear layers with integer weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from .....compiler.numerics.quantize import dequantize_channels
from ..builder import Builder
from ..contraction import ContractionStep, Window
from ..steps import Step
from ..terms import Form, Total
from ..values import Storage, Value
from .rule import Rule


def convolution(builder: Builder, node: fx.Node) -> bool:
    """A convolution over one, two or three axes."""
    weight = _weight(builder, node.args[1])
    known = builder.read(node.args[0]).plain  # type: ignore[arg-type]
    if weight is None or known is None or known[0].element != "u8":
        return False
    value, scale, zero = known
    integers, scales = weight
    axes = integers.dim() - 2
    each = {name: _each(builder.param(node, name, default), axes)
            for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))}  # fmt: skip
    padding = builder.param(node, "padding", 0)
    sizes = integers.shape[2:]
    if padding == "valid":
        each["padding"] = (0,) * axes
    elif padding == "same":
        each["padding"] = tuple(d * (k - 1) // 2 for d, k in zip(each["dilation"], sizes, strict=True))
    windows = tuple(
        Window(size, stride, pad, dilation)
        for size, stride, pad, dilation in zip(sizes, each["stride"], each["padding"], each["dilation"], strict=True)
    )
    groups = int(builder.param(node, "groups", 1))
    source = builder.channels_last(value, node, zero, [(w.padding, w.padding) for w in windows])

    def draft(form: Form, target: Value, top: int) -> Step:
        return ContractionStep(node, form, target, top, source=source, weight=integers, windows=windows, groups=groups)

    order = (0, *range(2, axes + 2), 1)
    builder.set(node, _form(builder, node, integers, scales, scale, zero), order=order, draft=draft)
    return True


def linear(builder: Builder, node: fx.Node) -> bool:
    """A linear layer, over the last axis."""
    weight = _weight(builder, node.args[1])
    known = builder.read(node.args[0]).plain  # type: ignore[arg-type]
    if weight is None or known is None or known[0].element != "u8" or len(known[0].shape) < 2:
        return False
    value, scale, zero = known
    integers, scales = weight
    last = value.dims[-1]
    if last.axis != value.storage.order[-1] or last.step != 1:
        value = _row_major(builder, node, value, zero)
    axes = len(value.shape)
    channels_first = (0, axes - 1, *range(1, axes - 1))
    source = value.permuted(channels_first)

    def draft(form: Form, target: Value, top: int) -> Step:
        moved = form.with_values(lambda v: v.expanded(target.shape).permuted(channels_first))
        windows = (Window(1),) * (axes - 2)
        weights = integers.reshape(*integers.shape, *[1] * (axes - 2))
        return ContractionStep(node, moved, target.permuted(channels_first), top, source=source, weight=weights,
                               windows=windows)  # fmt: skip

    builder.set(node, _form(builder, node, integers, scales, scale, zero), order=tuple(range(axes)), draft=draft)
    return True


def _row_major(builder: Builder, node: fx.Node, value: Value, zero: int) -> Value:
    from ..builder import read_form
    from ..steps import ElementwiseStep

    copy = Value.of(Storage(value.element, value.shape, tuple(range(len(value.shape))), zero=zero))
    builder.steps.append(ElementwiseStep(node, read_form(value), copy))
    return copy


def _weight(builder: Builder, node: Any) -> tuple[Tensor, Tensor] | None:
    """Integers without a zero point, and fp64 scales by output channel; None if they do not fit int8."""
    if not isinstance(node, fx.Node) or node.target is not dequantize_channels:
        return None
    integers, scale, zero_point = (builder.constant(n) for n in node.args[:3])  # type: ignore[arg-type]
    axis: Any = node.args[3]
    if axis != 0:
        return None
    shape = [-1] + [1] * (integers.dim() - 1)
    shifted = integers.to(torch.int16) - zero_point.to(torch.int16).reshape(shape)
    if int(shifted.min()) < -128 or int(shifted.max()) > 127:
        return None
    return shifted.to(torch.int8), scale.double().expand(integers.shape[0])


def _form(builder: Builder, node: fx.Node, integers: Tensor, scales: Tensor, scale: float, zero: int) -> Form:
    """``scale * scales * (sum - zero * sum of weights) + bias``."""
    factor = scale * scales
    rows = integers.double().flatten(1)
    bias_node = node.kwargs.get("bias")
    bias = builder.constant(bias_node).double() if isinstance(bias_node, fx.Node) else 0.0
    shift = bias - factor * zero * rows.sum(1)
    bound = float((factor * 255 * rows.abs().sum(1)).max() + shift.abs().max())
    return Form.of(Total(), factor, shift, bound)


def _each(value: Any, axes: int) -> tuple[int, ...]:
    if isinstance(value, str):
        return (0,) * axes
    return (int(value),) * axes if isinstance(value, int) else tuple(int(v) for v in value) * (axes // len(value))


RULES: dict[str, Rule] = {
    "conv1d": convolution,
    "conv2d": convolution,
    "conv3d": convolution,
    "linear": linear,
}
