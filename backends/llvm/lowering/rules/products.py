"""Products of computed matrices, and attention, which is made of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from ..builder import Builder
from ..lazy import Draft, Lazy, read_form
from ..products import PanelStep, ProductStep, panels_of
from ..row_steps import LARGEST, RowStep
from ..steps import ElementwiseStep, Step, TorchStep
from ..storage import Storage
from ..terms import Form, Total
from ..tiles import panel_columns
from ..values import Value
from .rule import Rule

MOST_SCORES = 2**26  # numbers in memory; beyond it, torch's attention computes them block by block
LEAST_SUM = 1e-30  # torch's attention gives zeros for a row that a mask leaves out as a whole


def matmul(builder: Builder, node: fx.Node) -> bool:
    """A product of matrices, or of batches of them."""
    left, right = (builder.infos.get(n) for n in node.args[:2])  # type: ignore[arg-type]
    info = builder.infos[node]
    if left is None or right is None or len(left.shape) < 2 or len(right.shape) < 2:
        return False
    if info.dtype != torch.float32 or node.kwargs.get("out") is not None:
        return False
    a, b = (builder.float_value(n) for n in node.args[:2])  # type: ignore[arg-type]
    order = tuple(range(len(info.shape)))
    builder.set(node, Form.of(Total()), order=order, draft=_product(builder, node, a, b, info.shape))
    return True


def _product(builder: Builder, node: fx.Node, left: Value, right: Value, shape: tuple[int, ...]) -> Draft:
    """What makes the steps of a product of fp32 matrices of this shape."""
    left = builder.row_major(left, node)
    groups, (depth, channels) = right.shape[:-2], right.shape[-2:]
    groups = (1,) * (len(shape) - 2 - len(groups)) + groups
    right = right.expanded((*groups, depth, channels))

    def draft(form: Form, target: Value) -> list[Step]:
        columns = panel_columns(channels, builder.isa)
        panels = panels_of(groups, depth, columns)
        sums = target
        if target.element != "f32":  # a kernel packs integers in an order of lanes that panels do not have
            sums = Value.of(Storage("f32", target.shape, target.storage.order))
        own = form if sums is target else Form.of(Total())
        steps: list[Step] = [
            PanelStep(node, Form.of(right), panels, source=right, columns=columns),
            ProductStep(node, own, sums, left=left, right=panels, columns=columns, depth=depth),
        ]
        if sums is not target:
            steps.append(ElementwiseStep(node, form.with_total(read_form(sums)), target))
        return steps

    return draft


def attention(builder: Builder, node: fx.Node) -> bool:
    """softmax(query @ key^T * scale + mask) @ value."""
    shape = builder.infos[node].shape
    infos = [builder.infos[n] for n in node.args[:3]]  # type: ignore[index]
    causal = bool(builder.param(node, "is_causal", False))
    given = len(infos[0].shape)
    if given < 3 or any(i.dtype != torch.float32 or len(i.shape) != given for i in infos):
        return False
    scores = (*shape[:-1], infos[1].shape[-2])
    if builder.param(node, "dropout_p", 0.0) or scores[-1] > LARGEST or math.prod(scores) > MOST_SCORES:
        return False
    query, key, value = (builder.float_value(n) for n in node.args[:3])  # type: ignore[arg-type]
    # Heads of queries share one of keys.
    shared = bool(builder.param(node, "enable_gqa", False)) and key.shape[-3] != query.shape[-3]
    if shared:
        if key.shape[-3] != value.shape[-3]:
            return False
        key, value = (v.with_one(given - 2) for v in (key, value))
        query = _split_heads(query, key)
    mask = node.kwargs.get("attn_mask")
    scale = builder.param(node, "scale")
    form = Form.of(Total(), 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale))
    if isinstance(mask, fx.Node):
        form = form.plus(_mask(builder, node, mask))
    if causal:
        form = form.plus(read_form(_shared_mask(builder, scores[-2:], _causal)))
    if shared:
        form = form.with_values(lambda v: _split_heads(v.expanded(scores), key))
    axes = len(query.shape)
    scores = (*query.shape[:-1], scores[-1])
    keys = key.permuted((*range(axes - 2), axes - 1, axes - 2))
    order = tuple(range(axes))
    product = Lazy(form, scores, node, order, draft=_product(builder, node, query, keys, scores))
    weights = Value.of(Storage("f32", scores, order))
    source = read_form(builder.compute(product, "f32"))
    softmax = RowStep(node, Form.of(Total(), bound=1.0), weights, operation="softmax", source=source, size=scores[-1],
                      epsilon=LEAST_SUM)  # fmt: skip
    builder.add(softmax)
    # The heads of a token lie side by side, as the projection after an attention reads them.
    joined = (*range(given - 3), given - 2, given - 3, given - 1) if given > 3 else tuple(range(given))
    draft = _product(builder, node, weights, value, (*scores[:-1], shape[-1]))

    def by_key(form: Form, target: Value) -> list[Step]:
        own = form.with_values(lambda v: _split_heads(v.expanded(target.shape), key))
        return draft(own, _split_heads(target, key))

    builder.set(node, Form.of(Total()), order=joined, draft=by_key if shared else draft)
    return True


def _split_heads(value: Value, key: Value) -> Value:
    """[..., heads, length, channels] as [..., heads of keys, heads that share one, length, channels].

    Args:
        key: has the heads of keys at its fourth axis from the end.
    """
    *outer, heads, length, channels = value.shape
    count = key.shape[-4]
    split = value.reshaped((*outer, count, heads // count, length, channels))
    assert split is not None  # an axis can always be split
    return split


def _mask(builder: Builder, node: fx.Node, mask: fx.Node) -> Form:
    """What a mask adds to the scores."""
    if mask in builder.lazy:
        return read_form(builder.float_value(mask))
    if mask.op == "get_attr":
        return read_form(_shared_mask(builder, mask, lambda mask: _added(builder.constant(mask))))
    if mask not in builder.masks:
        shape = builder.infos[mask].shape
        builder.masks[mask] = Value.of(Storage("f32", shape, tuple(range(len(shape)))))
        builder.add(TorchStep(None, {}, builder.masks[mask], lambda value_of: _added(value_of(mask))))
    return read_form(builder.masks[mask])


def _shared_mask(builder: Builder, key: Any, make: Callable[[Any], Tensor]) -> Value:
    """A constant that all attentions of a plan read."""
    if key not in builder.masks:
        builder.masks[key] = Value.of(Storage.constant(make(key)))
    return builder.masks[key]


def _added(mask: Tensor) -> Tensor:
    """What a mask adds: of bool, -inf where it is false."""
    return torch.zeros(mask.shape).masked_fill_(~mask, -math.inf) if mask.dtype == torch.bool else mask.float()


def _causal(scores: tuple[int, int]) -> Tensor:
    return torch.full(scores, -math.inf).triu(1)


RULES: dict[str, Rule] = {"matmul": matmul, "scaled_dot_product_attention": attention}
