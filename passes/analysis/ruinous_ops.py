"""Ops that ruin the output of the model in int8, alone or together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx

from ...backends.base.op import Output
from ...backends.ops.units import Unit
from ...compiler.core.progress import progress
from ...compiler.execution.graphs import GraphCopy
from ...compiler.execution.sample import Batch
from ...compiler.execution.stepper import Stepper
from ...compiler.numerics.metrics import worst_sqnr
from .assignment import INPUT_IS_FP32, Assignment
from .op_exchange import OpExchange

LEAST_SQNR = 10.0  # dB; the noise is then a tenth of the power of the output


def output_sqnr(frozen: fx.GraphModule, exact: GraphCopy, batch: Batch) -> float:
    """SQNR [dB] of the worst output tensor of a frozen graph on ``batch``; infinite if fp32 gives zeros."""
    (expected,), (ours,) = (Stepper(module, [batch]).finish() for module in (exact.module, frozen))
    return worst_sqnr(expected, ours)


def sqnr_of_each(
    frozen: fx.GraphModule, exact: GraphCopy, assignment: Assignment, units: Sequence[Unit], batch: Batch
) -> list[tuple[float, str]]:
    """SQNR [dB] of the worst output tensor if only one op is int8, and the name of the op; the worst first.

    Ops that pass integers on, and layers that were given fewer than 8 bits, are left out.
    """
    exchange = OpExchange.on(batch, frozen, exact, assignment)
    judged = [u for u in units if u.row.output is not Output.SHARED and assignment.config_of(u).weight_bits == 8]
    shown = progress(judged, "find ruinous ops", "op", len(judged))
    return sorted((worst_sqnr(exchange.fp32.output, exchange.only(unit)), unit.root.name) for unit in shown)


def ruinous_reason(left: float) -> str:
    """Why an op stays in fp32 that alone leaves ``left`` dB."""
    together = "" if left < LEAST_SQNR else " together with that in other ops"
    return f"int8 here would ruin the output{together}: this op alone leaves {left:.1f} dB"


def with_pass_through_ops(assignment: Assignment, fp32: Mapping[str, str]) -> dict[str, str]:
    """``fp32``, and the ops after that pass integers on and would have none. Reasons by the names of roots."""
    found = dict(fp32)
    for unit in assignment.int8_units:
        sources = {p.maker for p in assignment.passed if unit.root in p.readers}
        if unit.row.output is Output.SHARED and any(s is not None and s.name in found for s in sources):
            found[unit.root.name] = INPUT_IS_FP32
    return found
