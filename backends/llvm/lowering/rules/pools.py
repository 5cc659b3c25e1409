"""Pools and averages."""

from __future__ import annotations

import math
from typing import Any

from torch import fx

from ....ops.table import OPS
from ..builder import Builder
from ..contraction import Window
from ..lazy import read_form
from ..pooling import MaxStep, SumStep
from ..steps import Step
from ..storage import TOPS, Storage
from ..terms import Form, Total
from ..values import Value
from .rule import Rule, each


def max_pool(builder: Builder, node: fx.Node) -> bool:
    """The largest of a window."""
    info = builder.infos.get(node)
    if info is None:
        return False  # it returns indices, too
    value, scale, zero = builder.tensor(node.args[0])  # type: ignore[arg-type]
    axes = len(info.shape) - 2
    if axes != _axes(builder, node):
        return False
    sizes, strides, paddings = _windows(builder, node, axes)
    dilation = builder.param(node, "dilation", 1)
    if any(d != 1 for d in each(dilation, axes)):
        return False
    source = builder.channels_last(value, node, zero)
    order = (0, *range(2, axes + 2), 1)
    target = Value.of(Storage(source.element, info.shape, order, zero=zero))
    windows = tuple(Window(*w) for w in zip(sizes, strides, paddings, strict=True))
    builder.add(MaxStep(node, read_form(source), target, windows=windows), node)
    builder.set_value(node, target, scale, zero)
    return True


def average_pool(builder: Builder, node: fx.Node) -> bool:
    """The average of a window; padding counts."""
    axes = len(builder.infos[node].shape) - 2
    if axes != _axes(builder, node):
        return False
    sizes, strides, paddings = _windows(builder, node, axes)
    padded = any(paddings)
    uneven = builder.param(node, "ceil_mode", False) or builder.param(node, "divisor_override") is not None
    if uneven or (padded and not builder.param(node, "count_include_pad", True)):
        return False
    windows = tuple(Window(*w) for w in zip(sizes, strides, paddings, strict=True))
    return _average(builder, node, node.args[0], windows)  # type: ignore[arg-type]


def adaptive_average(builder: Builder, node: fx.Node) -> bool:
    """The average of equal parts."""
    source: Any = node.args[0]
    inputs, outputs = builder.infos[source].shape[2:], builder.infos[node].shape[2:]
    if len(inputs) != _axes(builder, node):
        return False  # without a batch axis
    if any(i % o for i, o in zip(inputs, outputs, strict=True)):
        return False
    windows = tuple(Window(i // o, i // o) for i, o in zip(inputs, outputs, strict=True))
    return _average(builder, node, source, windows)


def mean(builder: Builder, node: fx.Node) -> bool:
    """The average over all axes from 2 on."""
    source: Any = node.args[0]
    shape = builder.infos[source].shape
    dims = builder.param(node, "dim")
    if dims is None or len(shape) < 3 or builder.param(node, "dtype") is not None:
        return False
    found = sorted(d % len(shape) for d in ((dims,) if isinstance(dims, int) else dims))
    if found != list(range(2, len(shape))):
        return False
    windows = tuple(Window(size, size) for size in shape[2:])
    return _average(builder, node, source, windows)


def _average(builder: Builder, node: fx.Node, source: fx.Node, windows: tuple[Window, ...]) -> bool:
    value, scale, zero = builder.tensor(source)
    value = builder.channels_last(value, node, zero, [(w.padding, w.padding) for w in windows])
    count = math.prod(w.size for w in windows)
    shape = builder.infos[node].shape
    axes = len(windows)
    full = (*value.shape[:2], *[1] * axes) if len(shape) == 2 else shape
    if value.element == "s16" and count > 2**16:
        return False  # an int32 may not hold the sum
    bound = TOPS[value.element] * scale

    def draft(form: Form, target: Value) -> list[Step]:
        if len(target.shape) == 2:  # a mean drops the axes
            for axis in range(2, axes + 2):
                target = target.with_one(axis)
            form = form.with_values(lambda v: _with_ones(v.expanded(shape), axes))
        return [SumStep(node, form, target, source=value, windows=windows)]

    form = Form.of(Total(), scale / count, -scale * zero, bound)
    order = (0, *range(2, axes + 2), 1) if len(shape) == len(full) else (0, 1)
    builder.set(node, form, order=order, draft=draft)
    return True


def _with_ones(value: Value, axes: int) -> Value:
    for axis in range(2, axes + 2):
        value = value.with_one(axis)
    return value


def _axes(builder: Builder, node: fx.Node) -> int:
    """Axes of the window, as the op's name says."""
    row = OPS.of(node, builder.modules)
    assert row is not None
    return int(row.name[-2])


def _windows(builder: Builder, node: fx.Node, axes: int) -> tuple[tuple[int, ...], ...]:
    size = builder.param(node, "kernel_size")
    stride = builder.param(node, "stride") or size
    return each(size, axes), each(stride, axes), each(builder.param(node, "padding", 0), axes)


RULES: dict[str, Rule] = {
    **{f"max_pool{d}d": max_pool for d in (1, 2, 3)},
    **{f"avg_pool{d}d": average_pool for d in (1, 2, 3)},
    **{f"adaptive_avg_pool{d}d": adaptive_average for d in (1, 2, 3)},
    "mean": mean,
}
