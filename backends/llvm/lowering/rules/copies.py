"""Ops that move values to a memory of their own: joins, shuffles, resizing, padding."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import fx

from ..builder import Builder
from ..lazy import read_form
from ..steps import ElementwiseStep
from ..storage import Storage
from ..values import Value
from .rule import Rule
from .shapes import view


def cat(builder: Builder, node: fx.Node) -> bool:
    """Join along an axis. Inputs that a step computes are computed in their place, if they have the same qparams."""
    inputs: Any = node.args[0]
    if isinstance(inputs, fx.Node):
        return False  # what an op in torch returned
    shape = builder.infos[node].shape
    return _joined(builder, node, [builder.tensor(n) for n in inputs], builder.param(node, "dim", 0) % len(shape))


def stack(builder: Builder, node: fx.Node) -> bool:
    """Join along a new axis."""
    inputs: Any = node.args[0]
    if isinstance(inputs, fx.Node):
        return False
    axis = builder.param(node, "dim", 0) % len(builder.infos[node].shape)
    known = [(value.with_one(axis), scale, zero) for value, scale, zero in map(builder.tensor, inputs)]
    return _joined(builder, node, known, axis)


def _joined(builder: Builder, node: fx.Node, known: list[tuple[Value, float, int]], axis: int) -> bool:
    if len({(v.element, scale, zero) for v, scale, zero in known}) > 1:
        return False
    value, scale, zero = known[0]
    shape = builder.infos[node].shape
    order = next((v.storage.order for v, _, _ in known if v.whole), tuple(range(len(shape))))
    joined = Storage(value.element, shape, order, zero=zero)
    start = 0
    for part, _, _ in known:
        if not _placed(part, joined, axis, start):
            target = Value.of(joined).narrowed(axis, start, part.shape[axis])
            builder.add(ElementwiseStep(node, read_form(part), target))
        start += part.shape[axis]
    builder.set_value(node, Value.of(joined), scale, zero)
    return True


def _placed(part: Value, joined: Storage, axis: int, start: int) -> bool:
    """Let the memory of ``part`` be in ``joined``; whether that is possible."""
    storage = part.storage
    free = storage.parent is None and storage.place == "arena" and not storage.dense and not storage.halo
    if not part.whole or not free or storage.order != joined.order or storage.zero != joined.zero:
        return False
    storage.parent = (joined, axis, start)
    return True


def channel_shuffle(builder: Builder, node: fx.Node, value: Value) -> Value | None:
    groups = builder.param(node, "groups")
    n, channels, *rest = value.shape
    split = value.reshaped((n, groups, channels // groups, *rest))
    assert split is not None
    moved = split.permuted((0, 2, 1, *range(3, len(split.shape))))
    return builder.copied(moved, node, (0, *range(3, len(moved.shape)), 1, 2)).reshaped(value.shape)


def pixel_shuffle(builder: Builder, node: fx.Node, value: Value) -> Value | None:
    factor = builder.param(node, "upscale_factor")
    if len(value.shape) != 4:
        return None
    n, channels, height, width = value.shape
    split = value.reshaped((n, channels // factor**2, factor, factor, height, width))
    if split is None:
        return None
    moved = split.permuted((0, 1, 4, 2, 5, 3))
    return builder.copied(moved, node, (0, 2, 3, 4, 5, 1)).reshaped(builder.infos[node].shape)


def pixel_unshuffle(builder: Builder, node: fx.Node, value: Value) -> Value | None:
    factor = builder.param(node, "downscale_factor")
    if len(value.shape) != 4:
        return None
    n, channels, height, width = value.shape
    split = value.reshaped((n, channels, height // factor, factor, width // factor, factor))
    if split is None:
        return None
    moved = split.permuted((0, 1, 3, 5, 2, 4))
    return builder.copied(moved, node, (0, 4, 5, 1, 2, 3)).reshaped(builder.infos[node].shape)


def interpolate(builder: Builder, node: fx.Node, value: Value) -> Value | None:
    """Nearest neighbours, for whole factors."""
    shape = builder.infos[node].shape
    whole = not any(b % a for a, b in zip(value.shape, shape, strict=True))
    if builder.param(node, "mode", "nearest") != "nearest" or not whole or _uneven(builder, node, value.shape):
        return None
    spread, order, inner = value, [0], 2
    for axis in range(2, len(shape)):
        spread = spread.with_one(2 * axis - 1)
        order += [inner, inner + 1]
        inner += 2
    sizes = [*value.shape[:2], *(n for a in range(2, len(shape)) for n in (value.shape[a], shape[a] // value.shape[a]))]
    return builder.copied(spread.expanded(sizes), node, (*order, 1)).reshaped(shape)


def _uneven(builder: Builder, node: fx.Node, shape: tuple[int, ...]) -> bool:
    """Whether a factor is not that of the shapes: torch counts in steps of the factor."""
    factor, made = builder.param(node, "scale_factor"), builder.infos[node].shape[2:]
    if factor is None or builder.param(node, "recompute_scale_factor"):
        return False
    factors = factor if isinstance(factor, list | tuple) else [factor] * len(made)
    return any(f * n != m for f, n, m in zip(factors, shape[2:], made, strict=True))


def pad(builder: Builder, node: fx.Node, value: Value) -> Value | None:
    """Zeros around, which are a halo."""
    sides = builder.param(node, "pad")
    zeros = builder.param(node, "mode", "constant") == "constant" and builder.param(node, "value", 0) in (0, None)
    if not zeros or min(sides) < 0:
        return None
    axes = len(value.shape)
    halo = [(axes - 1 - i // 2, sides[i], sides[i + 1]) for i in range(0, len(sides), 2)]
    padded = builder.copied(value, node, value.order(), halo)
    for axis, low, high in halo:
        padded = padded.narrowed(axis, -low, value.shape[axis] + low + high)
    return padded


RULES: dict[str, Rule] = {
    "channel_shuffle": partial(view, channel_shuffle),
    "pixel_shuffle": partial(view, pixel_shuffle),
    "pixel_unshuffle": partial(view, pixel_unshuffle),
    "interpolate": partial(view, interpolate),
    "pad": partial(view, pad),
    "cat": cat,
    "stack": stack,
}
