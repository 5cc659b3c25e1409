"""Sums, products, clamps and activations: forms that nothing computes until they are read."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

from torch import fx

from ....base.op import Call
from ....ops.table import OPS
from ..builder import Builder
from ..lazy import Lazy, bounded, constant_form, read_form
from ..storage import Storage
from ..terms import Apply, Form
from ..values import Value
from .rule import Rule

LIMITS = {"sigmoid": 1.0, "hardsigmoid": 1.0, "tanh": 1.0}  # the largest magnitude of an activation


def clamp(name: str, builder: Builder, node: fx.Node) -> bool:
    """relu, relu6, hardtanh, clamp."""
    row = next(row for row in OPS.rows if row.name == name)
    source = builder.read(node.args[0])  # type: ignore[arg-type]
    assert row.clamp is not None
    call = Call(node, None, {})
    if any(isinstance(node.kwargs.get(bound), fx.Node) for bound in ("min", "max")):
        return False  # tensors
    low, high = row.clamp(call)
    low, high = (-math.inf if low is None else low), (math.inf if high is None else high)
    old_low, old_high = source.clamp
    bounds = max(old_low, low), min(old_high, high)
    if bounds[0] > bounds[1]:
        return False
    builder.lazy[node] = replace(source, clamp=bounds, node=node)
    return True


def activation(function: str, builder: Builder, node: fx.Node) -> bool:
    """A function of one value."""
    source = builder.read(node.args[0])  # type: ignore[arg-type]
    if function == "gelu" and builder.param(node, "approximate", "none") == "tanh":
        function = "gelu_tanh"
    form = source.clamped
    bound = LIMITS.get(function, form.bound + 1)
    builder.lazy[node] = replace(source, form=Form.of(Apply(function, (form,)), bound=bound), node=node,
                                 clamp=(-math.inf, math.inf))  # fmt: skip
    return True


def leaky_relu(builder: Builder, node: fx.Node) -> bool:
    """max(x, slope * x), for a slope from 0 to 1."""
    slope = float(builder.param(node, "negative_slope", 0.01))
    if not 0 <= slope <= 1:
        return False
    source = builder.read(node.args[0])  # type: ignore[arg-type]
    form = source.clamped
    larger = Form.of(Apply("max", (form, form.scaled(slope))), bound=form.bound)
    builder.lazy[node] = replace(source, form=larger, node=node, clamp=(-math.inf, math.inf))
    return True


def elu(builder: Builder, node: fx.Node) -> bool:
    """max(x, 0) + alpha * (exp(min(x, 0)) - 1)."""
    alpha = float(builder.param(node, "alpha", 1.0))
    source = builder.read(node.args[0])  # type: ignore[arg-type]
    negative = bounded(source.clamped, -math.inf, 0.0)
    curve = Form.of(Apply("exp", (negative,)), alpha, -alpha, bound=abs(alpha))
    form = bounded(source.clamped, 0.0, math.inf).plus(curve)
    builder.lazy[node] = replace(source, form=form, node=node, clamp=(-math.inf, math.inf))
    return True


def prelu(builder: Builder, node: fx.Node) -> bool:
    """max(x, 0) + slope * min(x, 0), a slope for each channel or one in all."""
    slope = builder.modules[str(node.target)].weight.detach()
    source = builder.read(node.args[0])  # type: ignore[arg-type]
    negative = bounded(source.clamped, -math.inf, 0.0)
    if slope.numel() == 1:
        scaled = negative.scaled(float(slope))
    elif len(source.shape) < 2:
        return False
    else:
        values = Value.of(Storage.constant(slope.reshape(1, -1, *[1] * (len(source.shape) - 2))))
        known = replace(read_form(values), bound=float(slope.abs().max()))
        scaled = _combined("mul", negative, known)
    form = bounded(source.clamped, 0.0, math.inf).plus(scaled)
    builder.lazy[node] = replace(source, form=form, node=node, clamp=(-math.inf, math.inf))
    return True


def binary(op: str, builder: Builder, node: fx.Node) -> bool:
    """A sum, difference, product or quotient."""
    if node.kwargs.keys() - {"alpha"} or builder.param(node, "alpha", 1) != 1 or len(node.args) != 2:
        return False
    sides = [_side(builder, argument) for argument in node.args]
    if None in sides or not any(isinstance(s, Lazy) for s in sides):
        return False
    shape = builder.infos[node].shape
    drafts = [s for s in sides if isinstance(s, Lazy) and s.draft is not None]
    for i, side in enumerate(sides):
        # Only one sum fits a step, and it needs the shape of the output.
        if isinstance(side, Lazy) and side.draft is not None and (side.shape != shape or side is not drafts[-1]
                                                                  or sides.count(side) > 1):  # fmt: skip
            argument: Any = node.args[i]
            builder.float_value(argument)
            sides = [builder.lazy[argument] if s is side else s for s in sides]
            drafts = [d for d in drafts if d is not side]
    left, right = (s.clamped if isinstance(s, Lazy) else s for s in sides)
    assert left is not None and right is not None
    whole = [s for s in sides if isinstance(s, Lazy) and s.shape == shape]
    like = drafts[0] if drafts else (whole[0] if whole else None)
    builder.set(node, _combined(op, left, right), like, draft=drafts[0].draft if drafts else None)
    return True


def _side(builder: Builder, argument: Any) -> Lazy | Form | None:
    if isinstance(argument, int | float):
        return constant_form(float(argument))
    if not isinstance(argument, fx.Node) or argument not in builder.infos or not builder.infos[argument].is_float:
        return None
    return builder.read(argument)


def _combined(op: str, left: Form, right: Form) -> Form:
    if op in ("add", "sub"):
        return left.plus(right, -1.0 if op == "sub" else 1.0)
    if op == "mul":
        for form, other in ((left, right), (right, left)):
            if not form.terms:
                return other.scaled(form.constant)
        return Form.of(Apply("mul", (left, right)), bound=left.bound * right.bound)
    if not right.terms and float(right.constant) != 0:
        return left.scaled(1.0 / right.constant)
    return Form.of(Apply("div", (left, right)))


def constant(builder: Builder, node: fx.Node) -> None:
    """A parameter or buffer."""
    tensor = builder.constant(node)
    if tensor.numel() == 1:
        builder.set(node, constant_form(float(tensor)))
    else:
        known = builder.store.read((node.target, "constant"), lambda: tensor.detach().float().contiguous())
        builder.set_value(node, Value.of(replace(Storage.constant(known), content=known, shared=True)))


def batch_norm(builder: Builder, node: fx.Node) -> bool:
    """A scale and a shift for each channel."""
    norm: Any = builder.modules[str(node.target)]
    source = builder.read(node.args[0])  # type: ignore[arg-type]
    if norm.running_mean is None or norm.training:
        return False
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.detach().double()
    shift = -norm.running_mean.double() * factor
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    if source.per_channel and source.clamp == (-math.inf, math.inf):
        builder.lazy[node] = replace(source, form=source.form.scaled(factor, shift), node=node)
        return True
    shape = (1, -1, *[1] * (len(source.shape) - 2))
    factors, shifts = (read_form(Value.of(Storage.constant(t.reshape(shape)))) for t in (factor, shift))
    limits = tuple(replace(f, bound=float(t.abs().max())) for f, t in ((factors, factor), (shifts, shift)))
    form = _combined("add", _combined("mul", source.clamped, limits[0]), limits[1])
    builder.set(node, form, source, draft=source.draft)
    return True


RULES: dict[str, Rule] = {
    **{name: partial(clamp, name) for name in ("relu", "relu6", "hardtanh", "clamp")},
    **{name: partial(activation, name) for name in ("hardswish", "hardsigmoid", "sigmoid", "tanh", "silu", "gelu")},
    "leaky_relu": leaky_relu,
    "elu": elu,
    "prelu": prelu,
    **{name: partial(binary, name) for name in ("add", "sub", "mul", "div")},
    **{f"batch_norm{d}d": batch_norm for d in (1, 2, 3)},
}
