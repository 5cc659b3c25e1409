"""Products of rows that are quantized at run time, with a scale and a zero point for each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ...base.dynamic_spec import DynamicSpec, RoundedWeight
from ...base.weights import IntegerWeight
from .builder import Builder
from .contraction import ContractionStep, Window
from .lazy import bounded, read_form
from .row_steps import RowStep
from .steps import ElementwiseStep, Step
from .storage import Storage
from .terms import Apply, Form, Total
from .values import Value


@dataclass(frozen=True)
class Matrix:
    """The weight of a layer: integers without their zero point and a scale for each output, or floats and ones.

    Attributes:
        scales: of the sums of the kernel, for each output: fp64. Ones if blocks of inputs have scales.
        sums: of the weights of each output, in steps of ``scales``: fp64.
        wide: whether a zero point makes integers of 9 bits.
        four_bits: whether the integers, multiples of 16 then, are stored in 4 bits.
        blocks: the scale of each block of inputs, fp32 [outputs, blocks], or None.
    """

    weight: Tensor
    scales: Tensor
    sums: Tensor
    wide: bool = False
    four_bits: bool = False
    blocks: Tensor | None = None

    @staticmethod
    def of(builder: Builder, spec: DynamicSpec, name: str) -> Matrix:
        """A weight [outputs, inputs, ones...] of a layer."""
        known = spec.weights[name]
        matrix: Matrix = builder.store.read((id(known), name), lambda: Matrix._of(known))
        return matrix

    @staticmethod
    def _of(known: RoundedWeight) -> Matrix:
        if not isinstance(known, IntegerWeight):
            ones = torch.ones(known.shape[0], dtype=torch.double)
            return Matrix(known.flatten(1), ones, ones)
        shifted = known.integers.flatten(1).short()
        if known.blocks == 1:  # else symmetric
            shifted = shifted - known.zero_point.reshape(-1, 1).short()
        low, high = (int(bound) for bound in shifted.aminmax())
        wide, four_bits = low < -128 or high > 127, is_four_bits(known)
        factor = 16 if four_bits else 1
        scales = known.scale.double() / factor
        shifted = shifted * factor
        if known.blocks == 1:
            sums = shifted.sum(1, dtype=torch.int64).double()
            return Matrix(shifted, scales.expand(len(shifted)), sums, wide, four_bits)
        sums = (shifted.unflatten(1, (known.blocks, -1)).sum(2, dtype=torch.int64) * scales).sum(1)
        return Matrix(shifted, torch.ones_like(sums), sums, wide, four_bits, scales.float())

    def step(self, builder: Builder, node: fx.Node, form: Form, source: Value, target: Value) -> Step:
        """The product with the channels of ``source``, as :func:`pointwise_step`."""
        stored = {"scales": self.blocks, "four_bits": self.four_bits}
        return pointwise_step(builder, node, self.weight, form, source, target, **stored)


def is_four_bits(weight: RoundedWeight) -> bool:
    """Whether a matrix is stored in 4 bits."""
    return isinstance(weight, IntegerWeight) and weight.fits_four_bits and not weight.zero_point.any()


@dataclass(frozen=True)
class RowOperand:
    """A tensor [..., channels] as the kernels read it: fp32, or integers with a zero point and a scale for each row."""

    value: Value
    zero: Form | None = None
    scale: Form | None = None

    def product(self, matrix: Matrix, bias: Tensor | float = 0.0) -> Form:
        """The product with a weight, over the sum of the kernel."""
        if self.zero is None or self.scale is None:
            return Form.of(Total(), 1.0, bias)
        shifted = Form.of(Total(), matrix.scales).plus(self.zero.scaled(-matrix.scales * matrix.sums))
        return Form.of(Apply("mul", (shifted, self.scale)), 1.0, bias)

    def steps(self, builder: Builder, node: fx.Node, matrix: Matrix, form: Form, target: Value) -> list[Step]:
        """The step that computes ``form`` over the sums."""
        first = channels_first(len(self.value.shape))
        own = form.with_values(lambda v: v.expanded(target.shape).permuted(first))
        return [matrix.step(builder, node, own, self.value.permuted(first), target.permuted(first))]


def channels_first(axes: int) -> tuple[int, ...]:
    """The order of axes that has the last one at axis 1."""
    return 0, axes - 1, *range(1, axes - 1)


def pointwise_step(
    builder: Builder, node: fx.Node, weight: Tensor, form: Form, source: Value, target: Value, **stored: Any
) -> ContractionStep:
    """A product with the channels of each place; they are axis 1 of source and target.

    Args:
        weight: [outputs, inputs], which the store of the builder keeps.
        stored: how, as :class:`ContractionStep` says.
    """
    axes = len(source.shape)
    taps = builder.store.read((id(weight), axes), lambda: weight.reshape(*weight.shape, *[1] * (axes - 2)))
    windows = (Window(1),) * (axes - 2)
    return ContractionStep(node, form, target, source=source, weight=taps, windows=windows, store=builder.store,
                           any_rows=True, **stored)  # fmt: skip


def row_operand(builder: Builder, node: fx.Node, value: Value, matrices: Sequence[Matrix]) -> RowOperand:
    """``value`` as the layers of these weights read it."""
    if matrices[0].weight.is_floating_point():
        return RowOperand(value)
    axes = tuple(range(len(value.shape)))
    ranges = row_ranges(builder, node, value)
    factor, zero, scale = (read_form(ranges.narrowed(axes[-1], i, 1)) for i in range(3))
    element: Any = "s16" if any(m.wide for m in matrices) else "u8"
    integers = Value.of(Storage(element, value.shape, axes, dense=True))
    builder.add(ElementwiseStep(node, in_steps(read_form(value), factor, zero), integers))
    return RowOperand(integers, zero, scale)


def row_ranges(builder: Builder, node: fx.Node, value: Value) -> Value:
    """1 / scale, zero point and scale of each row of ``value``: fp32 [..., 3]."""
    axes, size = tuple(range(len(value.shape))), value.shape[-1]
    ranges = Value.of(Storage("f32", (*value.shape[:-1], 3), axes, dense=True))
    builder.add(RowStep(node, Form.of(Total()), ranges, operation="range", source=read_form(value), size=size))
    return ranges


def in_steps(source: Form, factor: Form, zero: Form) -> Form:
    """The integers of ``source``, of 8 bits, before they are rounded."""
    return bounded(Form.of(Apply("mul", (source, factor))).plus(zero), 0.0, 255.0)
