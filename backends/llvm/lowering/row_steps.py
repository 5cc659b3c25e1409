"""Steps over whole rows: layer normalization, softmax, and the range for quantization."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..codegen.isa import Isa
from ..kernels.axes import Axis, freed, merged
from ..kernels.rows import RowOperation, Rows
from .steps import Made, Step, element, scalars
from .terms import Expression, Form
from .values import Value

LARGEST = 16384  # elements of a row, which a kernel holds on its stack


@dataclass(eq=False)
class RowStep(Step):
    """Works on the last axis; the sum of its form is the normalized value.

    Attributes:
        operation: what is computed of a row. The target has three numbers for each row for a range,
            two for extremes.
        source: what a row holds.
        size: of a row.
        epsilon: what is added to a variance; the least sum of a softmax.
    """

    operation: RowOperation = field(kw_only=True)
    source: Form = field(kw_only=True)
    size: int = field(kw_only=True)
    epsilon: float = field(kw_only=True, default=0.0)

    @property
    def sources(self) -> list[Value]:
        return self.source.values

    @property
    def kind(self) -> str:
        return self.operation

    def make(self, isa: Isa) -> Made:
        expression, inside = Expression(), Expression()
        last = len(self.target.shape) - 1
        epilogue = self.epilogue(expression, last)
        source = inside.of(self.source)
        shape = (*self.target.shape[:last], self.size)
        operands = [v.expanded(self.target.shape) for v in expression.operands]
        inputs = [v.expanded(shape) for v in inside.operands]
        tensors = (self.target, *operands, *inputs)
        order = [a for a in self.target.order() if a != last]
        outer = merged([Axis(shape[a], tuple(t.strides[a] for t in tensors)) for a in order])
        elements = tuple(element(v, last) for v in inputs)
        kernel = Rows(self.operation, freed(outer), shape[-1], self.epsilon, source, elements, epilogue, isa)
        lanes = kernel.block.vectors * isa.lanes
        params = [torch.nn.functional.pad(p, (0, lanes - p.numel())) for p in expression.channel_params]
        packed = torch.cat(params) if params else torch.zeros(1)
        return Made(kernel, (*tensors, packed, scalars(expression), scalars(inside)))
