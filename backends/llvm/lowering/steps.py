"""Steps of a plan: what is computed from which tensors, and the kernel that does it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from ..codegen.expr import Output
from ..codegen.isa import Isa
from ..kernels.axes import Axis, freed, merged
from ..kernels.elementwise import Elementwise
from ..kernels.epilogue import Epilogue
from ..kernels.fill import FillHalo
from ..kernels.interleave import MOST_CHANNELS, Interleave
from ..kernels.operands import BYTES, Element
from ..runtime.kernels import Kernel
from .storage import Storage
from .terms import Expression, Form
from .values import Value
from .weights import Packed

Argument = Value | Storage | Tensor | Packed  # a storage stands for the first byte of its memory


@dataclass(frozen=True)
class Made:
    """A kernel with its arguments."""

    kernel: Kernel
    arguments: tuple[Argument, ...]


@dataclass(eq=False)
class Loop:
    """Steps that run ``rounds`` times, one after the other in each round."""

    rounds: int


@dataclass(eq=False)
class Step:
    """One kernel of a plan.

    Attributes:
        loop: the loop that it belongs to. Its values move on by their ``drift`` in each round.
        node: the op of the program that it computes.
        form: what it stores, of its sums and other tensors; integers are in steps of the target, rounded.
        target: where.
    """

    node: fx.Node
    form: Form
    target: Value
    loop: Loop | None = field(default=None, kw_only=True)

    @property
    def sources(self) -> list[Value]:
        """What it reads besides what its form reads."""
        return []

    @property
    def reads(self) -> list[Value]:
        return [*self.sources, *self.form.values]

    @property
    def kind(self) -> str:
        """What a report says."""
        return type(self).__name__.removesuffix("Step").lower()

    def make(self, isa: Isa) -> Made:
        """The kernel, once all tensors have their places."""
        raise NotImplementedError

    def output(self, expression: Expression) -> Output:
        """The expression of the output."""
        limited = self.target.element != "f32" and not self.form.bound < 2**30
        return Output(expression.of(self.form), self.target.element, limited)

    def epilogue(self, expression: Expression, channel_axis: int) -> Epilogue:
        """The epilogue of a kernel whose lanes are along ``channel_axis`` of the target."""
        output = self.output(expression)
        elements = tuple(element(v.expanded(self.target.shape), channel_axis) for v in expression.operands)
        return Epilogue(output, elements, len(expression.channel_params))

    def moves(self, operands: Sequence[Value], axis: int) -> tuple[int, ...]:
        """Bytes along ``axis`` of target and operands."""
        expanded = (v.expanded(self.target.shape) for v in operands)
        return self.target.strides[axis], *(v.strides[axis] for v in expanded)


def element(value: Value, axis: int) -> Element:
    """How a tensor lies along an axis."""
    return Element(value.element, value.strides[axis], value.storage.place in ("input", "output"))


def scalars(expression: Expression) -> Tensor:
    return torch.tensor([*expression.scalars, 0.0], dtype=torch.float32)


class ElementwiseStep(Step):
    """Computes a form that has no sum."""

    def make(self, isa: Isa) -> Made:
        expression = Expression()
        output = self.output(expression)
        operands = [v.expanded(self.target.shape) for v in expression.operands]
        order = self.target.order()
        axes = merged([Axis(self.target.shape[a], self.moves(operands, a)) for a in order])
        size = BYTES[output.kind]
        if axes and axes[-1].moves[0] == size:
            *outer, inner = axes
        else:
            outer, inner = axes, Axis(1, (size, *[0] * len(operands)))
        bounded = [v.storage.place in ("input", "output") for v in operands]
        elements = tuple(
            Element(v.element, move, user) for v, move, user in zip(operands, inner.moves[1:], bounded, strict=True)
        )
        kernel: Kernel = Elementwise(freed(outer), inner.size, Epilogue(output, elements), isa)
        if outer and 1 < inner.size <= MOST_CHANNELS and outer[-1].moves[0] == inner.size * size:
            along = tuple(Element(e.kind, m, e.bounded) for e, m in zip(elements, outer[-1].moves[1:], strict=True))
            if all(e.contiguous or e.step == 0 for e in along):
                kernel = Interleave(freed(outer[:-1]), outer[-1].size, inner, Epilogue(output, along), isa)
        return Made(kernel, (self.target, *operands, scalars(expression)))


@dataclass(eq=False)
class FillStep:
    """Fills the halo of a storage with its zero."""

    storage: Storage

    @property
    def made(self) -> Made:
        storage = self.storage
        levels = []
        strides = storage.strides
        for axis in storage.order:
            before, after = storage.halo.get(axis, (0, 0))
            levels.append((before, storage.shape[axis], after, strides[axis]))
        while levels and not (levels[-1][0] or levels[-1][2]):
            levels.pop()
        return Made(FillHalo(tuple(levels), storage.element, storage.zero), (storage,))


@dataclass(eq=False)
class TorchStep:
    """An op that torch runs, on tensors that lie in the arena.

    Attributes:
        node: the op whose result it gives; None: it gives what only kernels read.
        reads_by_node: tensors that it reads, by their nodes.
        target: where its result goes, if a kernel reads it.
        run: takes the values of its nodes.
    """

    node: fx.Node | None
    reads_by_node: dict[fx.Node, Value]
    target: Value | None
    run: Callable[[Callable[[fx.Node], Any]], Any]

    @property
    def reads(self) -> list[Value]:
        return list(self.reads_by_node.values())


AnyStep = Step | FillStep | TorchStep
