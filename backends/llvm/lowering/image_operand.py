"""The input of a convolution that is quantized at run time, with one scale and zero point for each batch index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from .builder import Builder
from .lazy import read_form
from .row_products import Matrix, RowOperand, in_steps, row_ranges
from .row_steps import LARGEST, RowStep
from .steps import ElementwiseStep
from .storage import Storage
from .terms import Form, Total
from .values import Value


def image_operand(
    builder: Builder, node: fx.Node, value: Value, matrix: Matrix, halo: Sequence[tuple[int, int]]
) -> RowOperand | None:
    """``value`` [N, C, spatial...] as a convolution reads it; None if its size does not suit the kernels.

    Args:
        halo: elements of padding before and after each spatial axis.
    """
    if matrix.weight.is_floating_point():
        return RowOperand(builder.channels_last(value, node, 0, halo))
    axes = len(value.shape)
    parts = _parts(value.numel // value.shape[0])
    if parts is None:
        return None
    source = builder.channels_last(value, node, 0)
    if not source.whole or source.storage.root.halo:
        source = builder.copied(source, node, (0, *range(2, axes), 1))
    rows = source.permuted((0, *range(2, axes), 1)).reshaped((value.shape[0], value.numel // value.shape[0]))
    assert rows is not None  # it is whole
    ranges = _range(builder, node, rows, parts)

    def number(place: int) -> Form:
        part = ranges.narrowed(1, place, 1)
        for _ in range(axes - 2):
            part = part.with_one(2)
        return read_form(part)

    factor, zero, scale = (number(i) for i in range(3))
    form = in_steps(read_form(source), factor, zero)
    integers = _padded(builder, node, form, zero, source, "s16" if matrix.wide else "u8", halo)
    return RowOperand(integers, zero, scale)


def _parts(elements: int) -> list[int] | None:
    """The lengths of the parts that rows are cut to until they fit a kernel; None: they have no divisor that does."""
    found: list[int] = []
    while elements > LARGEST:
        part = next((n for n in range(LARGEST, LARGEST // 16, -1) if elements % n == 0), None)
        if part is None:
            return None
        found.append(part)
        elements = 2 * (elements // part)
    return found


def _range(builder: Builder, node: fx.Node, rows: Value, parts: Sequence[int]) -> Value:
    """The range of each row [N, elements]: fp32 [N, 3]. A long row is cut into parts, whose extremes come first."""
    count = rows.shape[0]
    for part in parts:
        pieces = rows.reshaped((count, rows.shape[1] // part, part))
        found = Value.of(Storage("f32", (count, rows.shape[1] // part, 2), (0, 1, 2), dense=True))
        merged = found.reshaped((count, 2 * found.shape[1]))
        assert pieces is not None and merged is not None  # they are dense
        builder.add(RowStep(node, Form.of(Total()), found, operation="extremes", source=read_form(pieces), size=part))
        rows = merged
    return row_ranges(builder, node, rows)


def _padded(
    builder: Builder, node: fx.Node, form: Form, zero: Form, like: Value, element: Any, halo: Sequence[tuple[int, int]]
) -> Value:
    """Memory for ``form``, with padding that holds ``zero``, which only the run tells."""
    axes = len(like.shape)
    spatial = (low + n + high for n, (low, high) in zip(like.shape[2:], halo, strict=True))
    storage = Storage(element, (*like.shape[:2], *spatial), (0, *range(2, axes), 1), dense=True)
    inner = Value.of(storage)
    for axis, (low, high) in enumerate(halo, 2):
        size = like.shape[axis]
        for start, length in ((0, low), (low + size, high)):
            side = inner.narrowed(axis, start, length)
            own = zero.with_values(lambda v: v.expanded(side.shape))  # noqa: B023
            builder.add(ElementwiseStep(node, own, side))
        inner = inner.narrowed(axis, low, size)
    builder.add(ElementwiseStep(node, form, inner))
    return inner
