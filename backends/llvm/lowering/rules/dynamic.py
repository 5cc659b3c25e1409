"""Linear layers and pointwise convolutions whose input is quantized at run time."""

from __future__ import annotations

import math
from typing import Any

from torch import fx

from ....base.dynamic_spec import DynamicSpec
from ....base.windows import is_pointwise
from ..builder import Builder
from ..contraction import ContractionStep
from ..image_operand import image_operand
from ..lazy import bounded
from ..row_products import Matrix, RowOperand, channels_first, row_operand
from ..row_steps import LARGEST
from ..steps import Step
from ..terms import Form
from ..values import Value
from .weighted import windows_of


def linear(builder: Builder, node: fx.Node, spec: DynamicSpec) -> bool:
    """A linear layer over the last axis."""
    if len(node.args) != 1 or node.kwargs or node.args[0] not in builder.lazy:
        return False
    argument: Any = node.args[0]
    shape = builder.infos[argument].shape
    if len(shape) < 2 or shape[-1] > LARGEST:
        return False
    value = builder.row_major(builder.float_value(argument), node)
    matrix = Matrix.of(builder, spec, "weight")
    operand = row_operand(builder, node, value, [matrix])

    def draft(form: Form, target: Value) -> list[Step]:
        return operand.steps(builder, node, matrix, form, target)

    builder.set(node, _output(spec, operand, matrix), order=tuple(range(len(shape))), draft=draft)
    return True


def pointwise_convolution(builder: Builder, node: fx.Node, spec: DynamicSpec) -> bool:
    """A convolution with windows of one pixel, whose channels are a row."""
    if len(node.args) != 1 or node.kwargs or node.args[0] not in builder.lazy:
        return False
    argument: Any = node.args[0]
    layer: Any = spec.layer
    shape = builder.infos[argument].shape
    if len(shape) != len(layer.stride) + 2 or shape[1] > LARGEST:
        return False
    value = builder.float_value(argument)
    for axis, stride in enumerate(layer.stride, 2):
        value = value.narrowed(axis, 0, -(-shape[axis] // stride), stride)
    last = (0, *range(2, len(shape)), 1)
    first = channels_first(len(shape))
    matrix = Matrix.of(builder, spec, "weight")
    operand = row_operand(builder, node, builder.row_major(value.permuted(last), node), [matrix])

    def draft(form: Form, target: Value) -> list[Step]:
        own = form.with_values(lambda v: v.expanded(target.shape))
        return [matrix.step(builder, node, own, operand.value.permuted(first), target)]

    form = _output(spec, operand, matrix).with_values(lambda v: v.permuted(first))
    builder.set(node, form, order=last, draft=draft, per_channel=True)
    return True


def convolution(builder: Builder, node: fx.Node, spec: DynamicSpec) -> bool:
    """A convolution: with a scale for each pixel if its windows are single pixels, else one for each batch index."""
    if is_pointwise(spec.layer):
        return pointwise_convolution(builder, node, spec)
    if len(node.args) != 1 or node.kwargs or node.args[0] not in builder.lazy:
        return False
    argument: Any = node.args[0]
    matrix = Matrix.of(builder, spec, "weight")
    assert matrix.blocks is None
    shape = tuple(spec.layer.get_parameter("weight").shape)
    if len(builder.infos[argument].shape) != len(shape):
        return False
    windows, halo = windows_of(builder, node, shape[2:])
    operand = image_operand(builder, node, builder.float_value(argument), matrix, halo)
    if operand is None:
        return False
    weight = builder.store.read((id(matrix.weight), shape), lambda: matrix.weight.reshape(shape))
    groups: Any = spec.layer.groups

    def draft(form: Form, target: Value) -> list[Step]:
        own = form.with_values(lambda v: v.expanded(target.shape))
        return [ContractionStep(node, own, target, source=operand.value, weight=weight, windows=windows, groups=groups,
                                four_bits=matrix.four_bits, store=builder.store)]  # fmt: skip

    builder.set(node, _output(spec, operand, matrix), order=(0, *range(2, len(shape)), 1), draft=draft,
                per_channel=True)  # fmt: skip
    return True


def _output(spec: DynamicSpec, operand: RowOperand, matrix: Matrix) -> Form:
    """The product with the bias, and the ReLU if it is part of the layer."""
    bias = spec.vector("bias")
    form = operand.product(matrix, 0.0 if bias is None else bias.double())
    return bounded(form, 0.0, math.inf) if spec.relu else form
