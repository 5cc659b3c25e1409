"""Building the steps of a plan: values that are not computed yet, and how they get computed."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from torch import Tensor, fx
from torch.fx.node import map_arg

from ....compiler.core.qparams import QParams
from ....compiler.execution.graphs import attribute
from ....compiler.execution.shapes import ValueInfo
from ..codegen.expr import Kind
from ..codegen.isa import Isa
from .lazy import Lazy, bounded, element_of, read_form, shift_of
from .steps import ElementwiseStep, FillStep, Loop, Step, TorchStep
from .storage import Storage
from .terms import Form
from .values import Value
from .weights import WeightStore


class Builder:
    """The steps of a plan while it is built.

    Attributes:
        gm: the graph of the program.
        infos: shape and dtype of every tensor.
        statics: sizes, which shapes alone give.
        isa: the instruction set.
        store: what the plans of the program share.
        steps: what is computed, in order.
        lazy: what each float tensor is.
        quantized: the tensor of each quantize node, and what is added to the integers of the program.
        pieces: what an op returns that has several results: tensor, scale and zero point of each, or a list of such.
        integers: the int64 tensors that a call gives.
        masks: what masks add to scores, by their node; causal ones by their shape.
        made_by: the step that computes an op.
        loop: what the next steps belong to.
    """

    def __init__(
        self, gm: fx.GraphModule, infos: Mapping[fx.Node, ValueInfo], statics: Mapping[fx.Node, Any], isa: Isa,
        store: WeightStore,
    ) -> None:  # fmt: skip
        self.gm, self.infos, self.statics, self.isa, self.store = gm, infos, statics, isa, store
        self.modules = dict(gm.named_modules())
        self.steps: list[Step | TorchStep | FillStep] = []
        self.lazy: dict[fx.Node, Lazy] = {}
        self.quantized: dict[fx.Node, tuple[Value, int]] = {}
        self._floats: dict[fx.Node, Value] = {}
        self.made_by: dict[fx.Node, Step | TorchStep] = {}
        self.pieces: dict[fx.Node, list[Any]] = {}
        self.integers: dict[fx.Node, Value] = {}
        self.masks: dict[Hashable, Value] = {}
        self.loop: Loop | None = None

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
        """Append a step, which computes ``ops``; none, if there is nothing to compute."""
        if isinstance(step, Step):
            if not step.target.numel:
                return
            step.loop = self.loop
        self.steps.append(step)
        self.made_by.update(dict.fromkeys(ops, step))

    def param(self, node: fx.Node, name: str, default: Any = None) -> Any:
        """An argument of a call that is no tensor, or an attribute of the module that it calls."""
        if node.op == "call_module":
            return getattr(self.modules[str(node.target)], name, default)
        return map_arg(node.kwargs.get(name, default), lambda n: self.statics[n])  # all are known, see Lowering

    def constant(self, node: fx.Node) -> Tensor:
        """The tensor of a get_attr node."""
        return attribute(self.gm, node)

    def tensor(self, node: fx.Node) -> tuple[Value, float, int]:
        """``node`` as a tensor, with scale and zero point: its integers, or fp32."""
        known = self.read(node).plain
        return known if known is not None else (self.float_value(node), 1.0, 0)

    def read(self, node: fx.Node) -> Lazy:
        """What ``node`` is. What several ops read is computed once, unless it only scales or adds tensors."""
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
        if node not in self._floats:
            self._floats[node] = self.compute(lazy, "f32")
            if known is None:  # integers stay what other ops read
                self.set_value(node, self._floats[node])
        return self._floats[node]

    def compute(self, lazy: Lazy, element: Kind, qparams: QParams | None = None) -> Value:
        """A step that computes ``lazy`` into memory of its own."""
        form, zero = lazy.form, 0
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
        self.emit(lazy, form, target)
        return target

    def emit(self, lazy: Lazy, form: Form, target: Value) -> None:
        """The steps that compute ``form``, which was made of that of ``lazy``."""
        steps = lazy.draft(form, target) if lazy.draft else [ElementwiseStep(lazy.node, form, target)]
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
        return self.copied(value, node, tuple(range(len(value.shape))))

    def copied(
        self, value: Value, node: fx.Node, order: tuple[int, ...], halo: Sequence[tuple[int, int, int]] = (),
        zero: int | None = None,
    ) -> Value:  # fmt: skip
        """A copy of ``value`` with its axes in this order in memory.

        Args:
            halo: axes with the elements before and after.
            zero: the integer of real zero, if it is not that of ``value``.
        """
        storage = Storage(value.element, value.shape, order, zero=value.storage.root.zero if zero is None else zero)
        for axis, low, high in halo:
            storage.widen(axis, low, high)
        copy = Value.of(storage)
        self.add(ElementwiseStep(node, read_form(value), copy))
        return copy

    def channels_last(self, value: Value, node: fx.Node, zero: int, halo: Sequence[tuple[int, int]] = ()) -> Value:
        """``value`` with axis 1 innermost in memory, and a halo around the axes from 2 on: itself or a copy."""
        order = (0, *range(2, len(value.shape)), 1)
        inner = value.dims[1].axis is not None and value.strides_follow(order)
        wide = [(axis, *sides) for axis, sides in enumerate(halo, 2) if any(sides)]
        if inner and value.storage.place == "arena" and self._widen(value, wide, zero):
            return value
        return self.copied(value, node, order, wide, zero)

    def _widen(self, value: Value, halo: Sequence[tuple[int, int, int]], zero: int) -> bool:
        storage = value.storage
        if not halo:
            return True
        if storage.root.zero != zero:
            return False
        for axis, low, high in halo:
            dim = value.dims[axis]
            if dim.axis is None or dim.step != 1 or dim.size != storage.shape[dim.axis] or value.starts[dim.axis]:
                return False
            if not storage.widen(dim.axis, low, high):
                return False
        return True
