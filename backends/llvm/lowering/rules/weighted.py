"""Convolutions and linear layers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, fx

from ....base.windows import halo
from ..builder import Builder
from ..contraction import ContractionStep, Window
from ..layer_operands import read_operands
from ..row_products import channels_first, pointwise_step
from ..steps import Step
from ..terms import Form
from ..values import Value
from .rule import Rule, each


def convolution(builder: Builder, node: fx.Node) -> bool:
    """A convolution over one, two or three axes."""
    operands = read_operands(builder, node, 0)
    if operands is None:
        return False
    weight = operands.weight
    axes = weight.dim() - 2
    if len(operands.value.shape) != axes + 2:
        return False
    windows, around = windows_of(builder, node, tuple(weight.shape[2:]))
    groups = int(builder.param(node, "groups", 1))
    source = builder.channels_last(operands.value, node, operands.zero, around)

    def draft(form: Form, target: Value) -> list[Step]:
        own = operands.without_zero(form, weight)
        return [ContractionStep(node, own, target, source=source, weight=weight, windows=windows, groups=groups,
                                store=builder.store)]  # fmt: skip

    builder.set(node, operands.form, order=(0, *range(2, axes + 2), 1), draft=draft, per_channel=True)
    return True


def windows_of(
    builder: Builder, node: fx.Node, sizes: tuple[int, ...]
) -> tuple[tuple[Window, ...], list[tuple[int, int]]]:
    """The windows of a convolution by axis, and the elements of padding before and after each axis."""
    axes = len(sizes)
    strides, dilations = (each(builder.param(node, name, 1), axes) for name in ("stride", "dilation"))
    padding = builder.param(node, "padding", 0)
    around = halo(padding if isinstance(padding, str) else each(padding, axes), sizes, dilations)
    before = [low for low, _ in around]
    return tuple(Window(*w) for w in zip(sizes, strides, before, dilations, strict=True)), around


def transposed_convolution(builder: Builder, node: fx.Node) -> bool:
    """A transposed convolution: for each place within a stride, a convolution with some of the taps."""
    operands = read_operands(builder, node, 1)
    if operands is None:
        return False
    weight = operands.weight  # [output channels, input channels of the group, taps...]
    axes = weight.dim() - 2
    if len(operands.value.shape) != axes + 2:
        return False
    strides, paddings, dilations = (
        each(builder.param(node, name, default), axes)
        for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))
    )
    if any(d != 1 for d in dilations) or any(k < s for k, s in zip(weight.shape[2:], strides, strict=True)):
        return False
    groups = int(builder.param(node, "groups", 1))
    outputs, inputs = builder.infos[node].shape[2:], operands.value.shape[2:]
    phases = [
        [Phase.of(first, *numbers) for first in range(min(numbers[0], numbers[4]))]
        for numbers in zip(strides, weight.shape[2:], paddings, inputs, outputs, strict=True)
    ]
    around = [(max(p.before for p in axis), max(p.after for p in axis)) for axis in phases]
    source = builder.channels_last(operands.value, node, operands.zero, around)

    def draft(form: Form, target: Value) -> list[Step]:
        steps: list[Step] = []
        for place in itertools.product(*phases):
            chosen = tuple(phase.taps for phase in place)
            taps, part, windows = builder.store.read((id(weight), chosen), partial(_taps, weight, chosen)), target, []
            for axis, phase in enumerate(place, 2):
                part = part.narrowed(axis, phase.first, phase.count, strides[axis - 2])
                windows.append(Window(len(phase.taps), 1, phase.padding))
            own = operands.without_zero(form, taps).with_values(
                lambda v: _narrowed(v.expanded(target.shape), place, strides)  # noqa: B023
            )
            steps.append(ContractionStep(node, own, part, source=source, weight=taps, windows=tuple(windows),
                                         groups=groups, store=builder.store))  # fmt: skip
        return steps

    builder.set(node, operands.form, order=(0, *range(2, axes + 2), 1), draft=draft)
    return True


@dataclass(frozen=True)
class Phase:
    """Outputs of a transposed convolution that are a stride apart, along one axis.

    Attributes:
        first: the first of these outputs.
        count: how many there are.
        taps: of the weight, in the order in which they meet the inputs.
        padding: how far the first window begins before the input; negative: after it.
        before, after: inputs that the windows need before and after those that there are.
    """

    first: int
    count: int
    taps: tuple[int, ...]
    padding: int
    before: int
    after: int

    @staticmethod
    def of(first: int, stride: int, size: int, padding: int, inputs: int, outputs: int) -> Phase:
        # Output o meets input i at tap o + padding - i * stride.
        rest = (first + padding) % stride
        taps = tuple(reversed(range(rest, size, stride)))
        newest = (first + padding - rest) // stride  # the last input that the first output reads
        begin = newest - len(taps) + 1
        count = -(-(outputs - first) // stride)
        after = newest + count - inputs
        return Phase(first, count, taps, -begin, max(0, -begin), max(0, after))


def _taps(weight: Tensor, chosen: tuple[tuple[int, ...], ...]) -> Tensor:
    """Some taps along each axis."""
    for axis, taps in enumerate(chosen, 2):
        weight = weight.index_select(axis, torch.tensor(taps))
    return weight


def _narrowed(value: Value, place: tuple[Phase, ...], strides: tuple[int, ...]) -> Value:
    for axis, (phase, stride) in enumerate(zip(place, strides, strict=True), 2):
        value = value.narrowed(axis, phase.first, phase.count, stride)
    return value


def linear(builder: Builder, node: fx.Node) -> bool:
    """A linear layer, over the last axis."""
    operands = read_operands(builder, node, 0)
    if operands is None or len(operands.value.shape) < 2:
        return False
    axes = len(operands.value.shape)
    value = builder.row_major(operands.value, node)
    first = channels_first(axes)
    weight = operands.weight

    def draft(form: Form, target: Value) -> list[Step]:
        own = operands.without_zero(form, weight).with_values(lambda v: v.expanded(target.shape).permuted(first))
        return [pointwise_step(builder, node, weight, own, value.permuted(first), target.permuted(first))]

    builder.set(node, operands.form, order=tuple(range(axes)), draft=draft)
    return True


RULES: dict[str, Rule] = {
    **{f"conv{d}d": convolution for d in (1, 2, 3)},
    **{f"conv_transpose{d}d": transposed_convolution for d in (1, 2, 3)},
    "linear": linear,
}
