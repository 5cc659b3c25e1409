"""Ops that move values: views where the memory allows it, else a copy before the view."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import fx

from ..builder import Builder
from ..values import Value
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
    return builder.copied(value, node, tuple(range(len(value.shape)))).reshaped(shape)


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
    if not all(u.target is operator.getitem and isinstance(u.args[1], int) for u in node.users):
        return False  # the pieces are wanted as a whole
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
        piece = builder.pieces[source][index]
        if isinstance(piece, list):
            builder.pieces[node] = piece
        else:
            builder.set_value(node, *piece)
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
        bounds = (item.start, item.stop, item.step) if isinstance(item, slice) else (item,)
        if any(isinstance(b, fx.Node) and b not in builder.statics for b in bounds):
            return None  # a tensor
        if isinstance(item, fx.Node):
            item = builder.statics[item]
        if item is None:
            value = value.with_one(axis)
            axis += 1
        elif isinstance(item, int):
            value = value.narrowed(axis, item % value.shape[axis], 1).without(axis)
        elif isinstance(item, slice):
            known = (builder.statics[b] if isinstance(b, fx.Node) else b for b in bounds)
            start, stop, step = slice(*known).indices(value.shape[axis])
            if step < 1 or stop <= start:
                return None
            value = value.narrowed(axis, start, -(-(stop - start) // step), step)
            axis += 1
        else:
            return None
    return value


RULES: dict[str, Rule] = {
    **dict.fromkeys(("reshape", "flatten", "unflatten", "squeeze", "unsqueeze"), partial(view, reshape)),
    "permute": partial(view, permute),
    "transpose": partial(view, transpose),
    "narrow": partial(view, narrow),
    "select": partial(view, select),
    "expand": partial(view, expand),
    "clone": partial(view, clone),
    "chunk": pieces,
    "split": pieces,
    "getitem": getitem,
}
