"""Building the steps of a plan: values that are not computed yet, and how they get computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from ....compiler.core.qparams import QParams
from ....compiler.execution.graphs import attribute
from ....compiler.execution.shapes import ValueInfo
from .steps import ElementwiseStep, FillStep, Step, TorchStep
from .terms import Apply, Form
from .values import Element, Storage, Value

Draft = Callable[[Form, Value, int], list[Step]]  # form, target, top -> the steps that sum


@dataclass(frozen=True, eq=False)
class Lazy:
    """A float value that is not computed yet, or that is read from a tensor as it is.

    Attributes:
        form: how it is computed.
        shape: of the value.
        node: the op that gives it.
        order: its axes in memory, outermost first, once it is computed.
        draft: makes the step of its sum, if the form has one.
        clamp: bounds that are applied to the form.
        ops: what the form computes.
    """

    form: Form
    shape: tuple[int, ...]
    node: fx.Node
    order: tuple[int, ...]
    draft: Draft | None = None
    clamp: tuple[float, float] = (-math.inf, math.inf)
    ops: tuple[fx.Node, ...] = ()

    @property
    def plain(self) -> tuple[Value, float, int] | None:
        """The tensor, its scale and zero point, if the value is nothing but that."""
        if self.clamp != (-math.inf, math.inf) or len(self.form.terms) != 1:
            return None
        leaf, factor = self.form.terms[0]
        if not isinstance(leaf, Value) or factor.numel() > 1 or self.form.constant.numel() > 1 or leaf.shape != self.shape:
            return None
        scale, zero = float(factor), -float(self.form.constant) / float(factor) if float(factor) else 0.0
        if leaf.element == "f32" and (scale != 1 or zero != 0):
            return None
        return leaf, scale, round(zero)

    @property
    def clamped(self) -> Form:
        """The form with the bounds applied."""
        return bounded(self.form, *self.clamp)


def bounded(form: Form, low: float, high: float) -> Form:
    """``form``, clamped."""
    for op, bound in (("max", low), ("min", high)):
        if math.isfinite(bound):
            limit = max(form.bound, abs(bound))
            form = Form.of(Apply(op, (form, constant_form(bound))), bound=limit)
    if math.isfinite(low) and math.isfinite(high):
        form = replace(form, bound=max(abs(low), abs(high)))
    return form


def constant_form(value: Tensor | float) -> Form:
    number = torch.as_tensor(value, dtype=torch.double)
    return Form((), number, float(number.abs().max()) if number.numel() else 0.0)


def read_form(value: Value, scale: float = 1.0, zero_point: int = 0) -> Form:
    """A tensor as the real numbers that it stands for."""
    bound = {"u8": 255.0, "s16": 32767.0, "f32": math.inf}[value.element] * scale
    return Form.of(value, scale, -scale * zero_point, bound)


def element_of(qparams: QParams) -> Element:
    """What holds the integers."""
    return "s16" if qparams.qmax - qparams.qmin > 255 else "u8"


def shift_of(qparams: QParams) -> int:
    """What is added to the integers to hold them."""
    return 0 if element_of(qparams) == "s16" else -qparams.qmin


class Builder:
    """The steps of a plan while it is built.

    Attributes:
        gm: the graph of the program.
        infos: shape and dtype of every tensor.
        statics: sizes, which shapes alone give.
        steps: what is computed, in order.
        lazy: what each float tensor is.
        quantized: the tensor of each quantize node, and what is added to the integers of the program.
        pieces: what chunk and split return: tensor, scale and zero point of each piece.
        made_by: the step that computes an op.
    """

    def __init__(
        self, gm: fx.GraphModule, infos: Mapping[fx.Node, ValueInfo], statics: Mapping[fx.Node, Any]
    ) -> None:
        self.gm, self.infos, self.statics = gm, infos, statics
        self.modules = dict(gm.named_modules())
        self.steps: list[Step | TorchStep | FillStep] = []
        self.lazy: dict[fx.Node, Lazy] = {}
        self.quantized: dict[fx.Node, tuple[Value, int]] = {}
        self.made_by: dict[fx.Node, Step | TorchStep] = {}
        self.pieces: dict[fx.Node, list[tuple[Value, float, int]]] = {}

    def set(self, node: fx.Node, form: Form, like: Lazy | None = None, **more: Any) -> None:
        """Let ``node`` be ``form``; its layout is that of ``like``."""
        shape = self.infos[node].shape
        order = more.pop("order", None)
        if order is None:
            order = like.order if like is not None and len(like.order) == len(shape) else tuple(range(len(shape)))
        self.lazy[node] = Lazy(form, shape, node, order, **more)

    def set_value(self, node: fx.Node, value: Value, scale: float = 1.0, zero_point: int = 0) -> None:
        """Let ``node`` be a tensor."""
        self.set(node, read_form(value, scale, zero_point), order=value.order())

    def add(self, step: Step | TorchStep, *ops: fx.Node) -> None:
        """Append a step, which computes ``ops``."""
        self.steps.append(step)
        self.made_by.update(dict.fromkeys(ops, step))

    def param(self, node: fx.Node, name: str, default: Any = None) -> Any:
        """An argument of a call that is no tensor, or an attribute of the module that it calls."""
        if node.op == "call_module":
            return getattr(self.modules[str(node.target)], name, default)
        return map_arg(node.kwargs.get(name, default), lambda n: self.statics[n])

    def constant(self, node: fx.Node) -> Tensor:
        """The tensor of a get_attr node."""
        return attribute(self.gm, node)

    def tensor(self, node: fx.Node) -> tuple[Value, float, int]:
        """``node`` as a tensor, with scale and zero point: its integers, or fp32."""
        known = self.read(node).plain
        return known if known is not None else (self.float_value(node), 1.0, 0)

    def read(self, node: fx.Node) -> Lazy:
        """What ``node`` is; what several ops read is computed once."""
        lazy = self.lazy[node]
        if len(node.users) > 1 and lazy.form.leaves and not self._cheap(lazy):
            self.set_value(node, self.float_value(node))
            lazy = self.lazy[node]
        return lazy

    def _cheap(self, lazy: Lazy) -> bool:
        return lazy.draft is None and all(isinstance(leaf, Value) for leaf, _ in lazy.form.terms)

    def float_value(self, node: fx.Node) -> Value:
        """``node`` as a fp32 tensor."""
        lazy = self.lazy[node]
        known = lazy.plain
        if known is not None and known[0].element == "f32":
            return known[0]
        value = self.compute(lazy, "f32")
        self.set_value(node, value)
        return value

    def compute(self, lazy: Lazy, element: Element, qparams: QParams | None = None) -> Value:
        """A step that computes ``lazy`` into memory of its own."""
        form, top, zero = lazy.form, 255, 0
        low, high = lazy.clamp
        if qparams is None:
            form = lazy.clamped
        else:
            zero = qparams.zero_point + shift_of(qparams)
            top = qparams.qmax + shift_of(qparams)
            saturates = qparams.clamps_to(low, high)
            form = form.scaled(1.0 / qparams.scale, zero)
            if not saturates:
                low, high = (zero + bound / qparams.scale for bound in (low, high))
                form = bounded(form, low, high)
            if top < 255 and element == "u8":
                form = bounded(form, -math.inf, float(top))
        storage = Storage(element, lazy.shape, lazy.order, zero=zero)
        target = Value.of(storage)
        self.emit(lazy, form, target, top)
        return target

    def emit(self, lazy: Lazy, form: Form, target: Value, top: int = 255) -> None:
        """The steps that compute ``form``, which was made of that of ``lazy``."""
        steps = lazy.draft(form, target, top) if lazy.draft else [ElementwiseStep(lazy.node, form, target, top)]
        for step in steps:
            self.add(step, *lazy.ops)

    def quantize(self, node: fx.Node, source: fx.Node, qparams: QParams) -> None:
        """The integers of a quantize node."""
        lazy = self.read(source)
        shift, element = shift_of(qparams), element_of(qparams)
        known = lazy.plain
        same = (qparams.scale, qparams.zero_point + shift)
        if known is not None and known[0].element == element and (known[1], known[2]) == same:
            value = known[0]
        else:
            value = self.compute(lazy, element, qparams)
        self.quantized[node] = value, shift

    def row_major(self, value: Value, node: fx.Node) -> Value:
        """``value`` with the last axis innermost in memory: itself or a copy."""
        last = value.dims[-1]
        if last.axis == value.storage.order[-1] and last.step == 1:
            return value
        order = tuple(range(len(value.shape)))
        copy = Value.of(Storage(value.element, value.shape, order, zero=value.storage.root.zero))
        self.add(ElementwiseStep(node, read_form(value), copy))
        return copy

    def channels_last(self, value: Value, node: fx.Node, zero: int, halo: Sequence[tuple[int, int]] = ()) -> Value:
        """``value`` with axis 1 innermost in memory, and a halo around the axes from 2 on: itself or a copy."""
        order = (0, *range(2, len(value.shape)), 1)
        inner = value.dims[1].axis is not None and value.strides_follow(order)
        wide = [(axis, *sides) for axis, sides in enumerate(halo, 2) if any(sides)]
        if inner and value.storage.place == "arena" and self._widen(value, wide, zero):
            return value
        storage = Storage(value.element, value.shape, order, zero=zero)
        for axis, low, high in wide:
            storage.widen(axis, low, high)
        copy = Value.of(storage)
        self.steps.append(ElementwiseStep(node, read_form(value), copy))
        return copy

    def _widen(self, value: Value, halo: Sequence[tuple[int, int, int]], zero: int) -> bool:
        storage = value.storage
        if not halo:
            return True
        if storage.root.zero != zero:
            return False
        for axis, low, high in halo:
            dim = value.dims[axis]
            if dim.axis is None or dim.step != 1 or dim.size != storage.shape[dim.axis]:
                return False
            if not storage.widen(dim.axis, low, high):
                return False
        return True

