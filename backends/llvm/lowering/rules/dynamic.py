"""Layers whose input is quantized at run time: integers with a scale and a zero point for each row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ....base.dynamic_spec import DynamicSpec
from ....base.weights import IntegerWeight
from ..builder import Builder
from ..contraction import ContractionStep, Window
from ..lazy import bounded, read_form
from ..row_steps import LARGEST, RowStep
from ..steps import ElementwiseStep, Step
from ..storage import Storage
from ..terms import Apply, Form, Total
from ..values import Value


def linear(builder: Builder, node: fx.Node, spec: DynamicSpec) -> bool:
    """A linear layer over the last axis."""
    argument: Any = node.args[0]
    info = builder.infos[argument]
    if len(info.shape) < 2 or info.shape[-1] > LARGEST or info.dtype != torch.float32:
        return False
    value = builder.row_major(builder.float_value(argument), node)
    weight, bias = spec.weights["weight"], spec.vector("bias")
    constant: Tensor | float = 0.0 if bias is None else bias.double()
    if isinstance(weight, IntegerWeight):
        shifted = weight.integers.short() - weight.zero_point.reshape(-1, 1).short()
        source, form = _quantized(builder, node, value, shifted, weight.scale.double().expand(shifted.shape[0]), constant)
    else:
        shifted, source, form = weight.float(), value, Form.of(Total(), 1.0, constant)
    axes = len(info.shape)
    channels_first = (0, axes - 1, *range(1, axes - 1))
    taps = shifted.reshape(*shifted.shape, *[1] * (axes - 2))

    def draft(form: Form, target: Value) -> list[Step]:
        own = form.with_values(lambda v: v.expanded(target.shape).permuted(channels_first))
        return [ContractionStep(node, own, target.permuted(channels_first), source=source.permuted(channels_first),
                                weight=taps, windows=(Window(1),) * (axes - 2))]  # fmt: skip

    builder.set(node, bounded(form, 0.0, float("inf")) if spec.relu else form, order=tuple(range(axes)), draft=draft)
    return True


def _quantized(
    builder: Builder, node: fx.Node, value: Value, weight: Tensor, scales: Tensor, bias: Tensor | float
) -> tuple[Value, Form]:
    """The integers of ``value``, rounded by rows, and the output over the sum of their products with ``weight``."""
    rows = tuple(range(len(value.shape)))
    ranges = Value.of(Storage("f32", (*value.shape[:-1], 3), rows))
    builder.add(
        RowStep(node, Form.of(Total()), ranges, operation="range", source=read_form(value), size=value.shape[-1])
    )
    factor, zero, scale = (read_form(ranges.narrowed(rows[-1], i, 1)) for i in range(3))
    wide = int(weight.min()) < -128 or int(weight.max()) > 127
    integers = Value.of(Storage("s16" if wide else "u8", value.shape, rows))
    steps = Form.of(Apply("mul", (read_form(value), factor))).plus(zero)
    builder.add(ElementwiseStep(node, bounded(steps, 0.0, 255.0), integers))
    shift = Form.of(Total(), scales).plus(zero.scaled(-scales * weight.double().sum(1)))
    return integers, Form.of(Apply("mul", (shift, scale)), 1.0, bias)


RULES = {"linear": linear}
