"""Fuse an op into the convolution or linear layer before it, if that is faster.

In the program, a quantize/dequantize pair stands between the two. Fusing drops the pair: the result is rounded once
instead of twice, as the executed graph shows.
"""

from __future__ import annotations

from torch import fx

from ....compiler.core.progress import progress
from ...base.frozen_nodes import is_dequantize, pair_qparams
from ...base.op import Output
from ...ops.units import Unit
from ..kernels.calls import Int8Call
from ..tuning.tuner import Costs
from .program_view import ProgramView, binding, only_quantize

# Fused wins ties and small losses: it saves a rounding, and in a whole graph the dispatch of an op.
TOLERANCE = 1.05


def fuse(view: ProgramView, costs: Costs) -> int:
    """Drop the pairs that fused kernels do not need. Returns the number of fusions."""
    count = 0
    overwritten: set[fx.Node] = set()
    units = list(view.unit_of.values())
    for unit in progress(units, "fuse ops", "op", len(units)):
        for value in unit.inputs:
            first = fusable(view, value, unit)
            # Fusing moves `first` to the place of `unit`: its inputs must not be overwritten before that.
            if first is None or any(n in overwritten for n in first.inputs):
                continue
            if _pays(view, first, value, unit, costs):
                residuals = [n for n in unit.inputs if n is not value]
                overwritten.update(pair for n in residuals for pair in n.args[0].users)  # type: ignore[union-attr]
                unit.root.replace_input_with(value, first.output)
                count += 1
                break
    view.gm.graph.eliminate_dead_code()
    view.gm.recompile()
    return count


def fused_call(view: ProgramView, first: Unit, second: Unit, link: fx.Node) -> Int8Call | None:
    """``first`` with ``second`` after it as one call; ``link`` is what ``second`` reads of ``first``."""
    quantized = only_quantize(second.output)
    if quantized is None:
        return None
    rest = tuple(n for n in second.inputs if n is not link)
    call = view.call(first, pair_qparams(quantized), (*first.inputs, *rest))
    clamp = view.call(second, call.out, ()).clamp
    epilogue = (second.row.name, second.root)
    return Int8Call(call.op, call.node, call.inputs, call.out, clamp, call.weight, call.bias, None, epilogue)


def fusable(view: ProgramView, value: fx.Node, second: Unit) -> Unit | None:
    """The unit that gives ``value``, if ``second`` may be fused into it."""
    if not is_dequantize(value) or len(value.users) != 1:
        return None
    quantized: fx.Node = value.args[0]  # type: ignore[assignment]
    source: fx.Node = quantized.args[0]  # type: ignore[assignment]
    first = view.unit_of.get(source)
    if first is None or len(quantized.users) != 1 or len(source.users) != 1 or len(first.nodes) > 1:
        return None
    if second.row.name not in binding(first).fused or not all(pair_qparams(n) for n in first.inputs):
        return None
    rest = [n for n in second.inputs if n is not value]
    if len(rest) != second.row.inputs - 1 or view.values[source].shape != view.values[second.output].shape:
        return None  # y + y, y + 1, or a sum that broadcasts the output of the convolution
    return first if all(_may_be_overwritten(view, n, first, second) for n in rest) else None


def _may_be_overwritten(view: ProgramView, residual: fx.Node, first: Unit, second: Unit) -> bool:
    """Whether nothing reads ``residual``, or shares its memory, after ``second`` has run."""
    own, end = pair_qparams(residual), only_quantize(second.output)
    if own is None or end is None or view.values[residual].shape != view.values[second.output].shape:
        return False
    quantized: fx.Node = residual.args[0]  # type: ignore[assignment]
    maker = view.unit_of.get(quantized.args[0])  # type: ignore[arg-type]
    if maker is not None and maker.row.output is Output.SHARED and not maker.row.keeps_channels:
        return False
    units = {u.root: u for u in view.unit_of.values()}
    for pair in quantized.users:
        for reader in pair.users:
            if reader is second.root:
                continue
            unit = units.get(reader)
            done = only_quantize(unit.output) if unit else None
            if unit is None or done is None or unit.row.output is Output.SHARED or unit is first:
                return False
            if view.order[done] >= view.order[end]:
                return False
    return True


def _pays(view: ProgramView, first: Unit, link: fx.Node, second: Unit, costs: Costs) -> bool:
    fused = fused_call(view, first, second, link)
    candidates = binding(first).fused[second.row.name](fused) if fused is not None else []
    if fused is None or not candidates:
        return False
    separate = 0.0
    for unit, out in ((first, pair_qparams(link)), (second, fused.out)):
        call = view.call(unit, out)
        separate += min(costs(call, view.candidates(unit, call)).values())
    return min(costs(fused, candidates).values()) <= separate * TOLERANCE
