"""Steps over whole rows: layer normalization and softmax."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from ..codegen.isa import Isa
from ..kernels.axes import Axis, merged
from ..kernels.rows import Rows
from .steps import Made, Step, element, scalars
from .terms import Expression, Form
from .values import Value


@dataclass(eq=False)
class RowStep(Step):
    """Normalizes over the last axis; the sum of its form is the normalized value.

    Attributes:
        operation: what is computed of a row.
        source: what a row holds.
        epsilon: of a normalization.
    """

    operation: Literal["norm", "softmax"] = field(kw_only=True)
    source: Form = field(kw_only=True)
    epsilon: float = field(kw_only=True, default=0.0)

    @property
    def sources(self) -> list[Value]:
        return self.source.values

    @property
    def kind(self) -> str:
        return self.operation

    def make(self, isa: Isa) -> Made:
        shape = self.target.shape
        expression, inside = Expression(), Expression()
        last = len(shape) - 1
        epilogue = self.epilogue(expression, last)
        source = inside.of(self.source)
        operands, inputs = ([v.expanded(shape) for v in e.operands] for e in (expression, inside))
        tensors = (self.target, *operands, *inputs)
        order = [a for a in self.target.order() if a != last]
        outer = merged([Axis(shape[a], tuple(t.strides[a] for t in tensors)) for a in order])
        elements = tuple(element(v, last) for v in inputs)
        kernel = Rows(self.operation, tuple(outer), shape[-1], self.epsilon, source, elements, epilogue, isa)
        lanes = kernel.block.vectors * isa.lanes
        params = [torch.nn.functional.pad(p, (0, lanes - p.numel())) for p in expression.channel_params]
        packed = torch.cat(params) if params else torch.zeros(1)
        return Made(kernel, (*tensors, packed, scalars(expression), scalars(inside)))
