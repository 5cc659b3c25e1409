"""What a step costs, estimated from its products and elements."""

from __future__ import annotations

from ..codegen.isa import Isa
from .contraction import ContractionStep
from .gather import GatherStep
from .products import ProductStep
from .row_steps import RowStep
from .steps import Step

MOVED = 4.0  # elements that a core computes or converts in a cycle
PASSES = 3  # over the elements of a row
FP32_PRODUCTS = 12.0  # fp32 products that a core does in a cycle


def cycles_of(step: Step, isa: Isa) -> float:
    """Cycles of one core, for one round of a loop."""
    elements = step.target.numel
    if isinstance(step, RowStep):
        elements = PASSES * step.size * (elements // step.target.shape[-1])
    if isinstance(step, GatherStep):
        elements = step.indices.numel * step.table.size
    cycles = elements / MOVED
    if isinstance(step, ContractionStep):
        each = FP32_PRODUCTS if step.source.element == "f32" else isa.products
        cycles += step.products / each * (4.0 if step.depthwise else 1.3)
    if isinstance(step, ProductStep):
        cycles += step.products / FP32_PRODUCTS
    return cycles
