"""Ops that move values: views where the memory allows it, else copies."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import fx

from ..builder import Builder, read_form
from ..steps import ElementwiseStep
from ..values import Storage, Value
from .rule import Rule


def view(change: Callable[[Builder, fx.Node, Value], Value | None], builder: Builder, node: fx.Node) -> bool:
    """An op whose output is a view of its input."""
    value, scale, zero = builder.tensor(node.args[0])  # type: ignore[arg-type]
    viewed = change(builder, node, value)
    if viewed is None:
        return False
    assert viewed.shape == builder.infos[node].shape
    builder.set_value(node, viewed, scale, zero)
    return True


def reshape(builder: Builder, node: fx.Node, value: Value) -> Value | None:
    """reshape, flatten, unflatten, squeeze, unsqueeze: the shape of the result says it all."""
    shape = builder.infos[node].shape
    viewed = value.reshaped(shape)
    if viewed is not None:
        return viewed
    zero = value.storage.root.zero
    copy = Value.of(Storage(value.element, value.shape, tuple(range(len(value.shape))), zero=zero))
    builder.steps.append(ElementwiseStep(node, read_form(value), copy))
    return copy.reshaped(shape)


def permute(builder: Builder, node: fx.Node, value: Value) -> Value:
    axes = [a % len(value.shape) for a in builder.param(node, "dims")]
    return value.permuted(axes)


def transpose(builder: Builder, node: fx.Node, value: Value) -> Value:
    axes = list(range(len(value.shape)))
    a, b = (builder.param(node, name) % len(axes) for name in ("dim0", "dim1"))
    axes[a], axes[b] = axes[b], axes[a]
    return value.permuted(axes)


def narrow(builder: Builder, node: fx.Node, value: Value) -> Value:
    axis = builder.param(node, "dim") % len(value.shape)
    start, length = builder.param(node, "start"), builder.param(node, "length")
    return value.narrowed(axis, start % value.shape[axis] if start < 0 else start, length)


def select(builder: Builder, node: fx.Node, value: Value) -> Value:
    axis = builder.param(node, "dim") % len(value.shape)
    return value.narrowed(axis, builder.param(node, "index") % value.shape[axis], 1).without(axis)


def expand(builder: Builder, node: fx.Node, value: Value) -> Value:
    return value.expanded(builder.infos[node].shape)


def clone(builder: Builder, node: fx.Node, value: Value) -> Value:
    return value


def pieces(builder: Builder, node: fx.Node) -> bool:
    """chunk and split; getitem picks a piece."""
    value, scale, zero = builder.tensor(node.args[0])  # type: ignore[arg-type]
    axis = builder.param(node, "dim", 0) % len(value.shape)
    size = value.shape[axis]
    if "chunks" in node.kwargs:
        each = -(-size // builder.param(node, "chunks"))
        lengths = [min(each, size - start) for start in range(0, size, each)]
    else:
        each = builder.param(node, "split_size_or_sections")
        lengths = list(each) if not isinstance(each, int) else [min(each, size - s) for s in range(0, size, each)]
    start, found = 0, []
    for length in lengths:
        found.append((value.narrowed(axis, start, length), scale, zero))
        start += length
    builder.pieces[node] = found
    return True


def getitem(builder: Builder, node: fx.Node) -> bool:
    """A piece of a chunk or split, or a slice of a tensor."""
    source, index = node.args[0], node.args[1] if len(node.args) > 1 else None
    assert isinstance(source, fx.Node)
    if source in builder.pieces and isinstance(index, int):
        builder.set_value(node, *builder.pieces[source][index])
        return True
    if source not in builder.lazy or node.target is not operator.getitem:
        return False
    value, scale, zero = builder.tensor(source)
    viewed = _sliced(builder, value, index)
    if viewed is None or viewed.shape != builder.infos[node].shape:
        return False
    builder.set_value(node, viewed, scale, zero)
    return True


def _sliced(builder: Builder, value: Value, index: Any) -> Value | None:
    items = index if isinstance(index, tuple) else (index,)
    axis = 0
    if Ellipsis in items:
        place = items.index(Ellipsis)
        used = sum(i is not None for i in items) - 1
        items = (*items[:place], *[slice(None)] * (len(value.shape) - used), *items[place + 1 :])
    for item in items:
        if isinstance(item, fx.Node):
            item = builder.statics.get(item)
        if item is None:
            value = value.with_one(axis)
            axis += 1
        elif isinstance(item, int):
            value = value.narrowed(axis, item % value.shape[axis], 1).without(axis)
        elif isinstance(item, slice):
            bounds = [builder.statics.get(b) if isinstance(b, fx.Node) else b for b in (item.start, item.stop, item.step)]
            start, stop, step = slice(*bounds).indices(value.shape[axis])
            if step < 1 or stop <= start:
                return None
            value = value.narrowed(axis, start, -(-(stop - start) // step), step)
            axis += 1
        else:
            return None
    return value


def cat(builder: Builder, node: fx.Node) -> bool:
    """Join along an axis. Inputs that a step computes are computed in their place, if they have the same qparams."""
    inputs: Any = node.args[0]
    known = [builder.tensor(n) for n in inputs]
    if len({(v.element, scale, zero) for v, scale, zero in known}) > 1:
        return False
    value, scale, zero = known[0]
    shape = builder.infos[node].shape
    axis = builder.param(node, "dim", 0) % len(shape)
    order = next((v.storage.order for v, _, _ in known if v.whole), tuple(range(len(shape))))
    joined = Storage(value.element, shape, order, zero=zero)
    start = 0
    for part, _, _ in known:
        if not _placed(part, joined, axis, start):
            target = Value.of(joined).narrowed(axis, start, part.shape[axis])
            builder.steps.append(ElementwiseStep(node, read_form(part), target))
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
    return _copied(builder, node, moved, (0, *range(3, len(moved.shape)), 1, 2)).reshaped(value.shape)


def pixel_shuffle(builder: Builder, node: fx.Node, value: Value) -> Value | None:
    factor = builder.param(node, "upscale_factor")
    if len(value.shape) != 4:
        return None
    n, channels, height, width = value.shape
    split = value.reshaped((n, channels // factor**2, factor, factor, height, width))
    if split is None:
        return None
    moved = split.permuted((0, 1, 4, 2, 5, 3))
    return _copied(builder, node, moved, (0, 2, 3, 4, 5, 1)).reshaped(builder.infos[node].shape)


def pixel_unshuffle(builder: Builder, node: fx.Node, value: Value) -> Value | None:
    factor = builder.param(node, "downscale_factor")
    if len(value.shape) != 4:
        return None
    n, channels, height, width = value.shape
    split = value.reshaped((n, channels, height // factor, factor, width // factor, factor))
    if split is None:
        return None
    moved = split.permuted((0, 1, 3, 5, 2, 4))
    return _copied(builder, node, moved, (0, 4, 5, 1, 2, 3)).reshaped(builder.infos[node].shape)


def interpolate(builder: Builder, node: fx.Node, value: Value) -> Value | None:
    """Nearest neighbours, for whole factors."""
    shape = builder.infos[node].shape
    if builder.param(node, "mode", "nearest") != "nearest" or any(b % a for a, b in zip(value.shape, shape, strict=True)):
        return None
    spread, order, inner = value, [0], 2
    for axis in range(2, len(shape)):
        spread = spread.with_one(2 * axis - 1)
        order += [inner, inner + 1]
        inner += 2
    sizes = [*value.shape[:2], *(n for a in range(2, len(shape)) for n in (value.shape[a], shape[a] // value.shape[a]))]
    return _copied(builder, node, spread.expanded(sizes), (*order, 1)).reshaped(shape)


def pad(builder: Builder, node: fx.Node, value: Value) -> Value | None:
    """Zeros around, which are a halo."""
    sides = builder.param(node, "pad")
    zeros = builder.param(node, "mode", "constant") == "constant" and builder.param(node, "value", 0) in (0, None)
    if not zeros or min(sides) < 0:
        return None
    axes = len(value.shape)
    wide = {axes - 1 - i // 2: (sides[i], sides[i + 1]) for i in range(0, len(sides), 2)}
    storage = Storage(value.element, value.shape, value.order(), zero=value.storage.root.zero)
    for axis, (low, high) in wide.items():
        storage.widen(axis, low, high)
    padded = Value.of(storage)
    builder.add(ElementwiseStep(node, read_form(value), padded))
    for axis, (low, high) in wide.items():
        padded = padded.narrowed(axis, -low, value.shape[axis] + low + high)
    return padded


def _copied(builder: Builder, node: fx.Node, value: Value, order: tuple[int, ...]) -> Value:
    copy = Value.of(Storage(value.element, value.shape, order, zero=value.storage.root.zero))
    builder.steps.append(ElementwiseStep(node, read_form(value), copy))
    return copy


RULES: dict[str, Rule] = {
    **dict.fromkeys(("reshape", "flatten", "unflatten", "squeeze", "unsqueeze"), partial(view, reshape)),
    "permute": partial(view, permute),
    "transpose": partial(view, transpose),
    "narrow": partial(view, narrow),
    "select": partial(view, select),
    "expand": partial(view, expand),
    "clone": partial(view, clone),
    "channel_shuffle": partial(view, channel_shuffle),
    "pixel_shuffle": partial(view, pixel_shuffle),
    "pixel_unshuffle": partial(view, pixel_unshuffle),
    "interpolate": partial(view, interpolate),
    "pad": partial(view, pad),
    "chunk": pieces,
    "split": pieces,
    "getitem": getitem,
    "cat": cat,
}
