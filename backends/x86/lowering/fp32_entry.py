"""The first ops of a model compute in fp32 on unrounded inputs, if that costs little of the whole time.

With three channels the int8 kernels gain little, and the error of rounding the input and the first activations cannot
be recovered later: it is up to a quarter of all noise (``docs/decisions.md``). So the quantize/dequantize pairs between
the input and the first ops are dropped, op by op, as long as their time allows. Weights stay int8.
"""

from __future__ import annotations

import math
from dataclasses import replace

from torch import fx

from ....compiler.core.progress import progress
from ...base.frozen_nodes import is_dequantize, is_quantize, pair_qparams
from ...base.op import Output
from ...ops.units import Unit
from ..kernels.calls import Int8Call, Operand
from ..kernels.fp32 import FP32_ENTRY, in_fp32, quantized_entry
from ..tuning.tuner import Costs
from .program_view import ProgramView, binding, only_quantize

SHARE = 0.1  # of the time of all weighted ops that this may cost


def drop_entry_pairs(view: ProgramView, costs: Costs) -> int:
    """Drop the pairs in front of the first ops. Returns the number of ops that compute in fp32."""
    budget = SHARE * _weighted_milliseconds(view, costs)
    exact: set[fx.Node] = set()  # values that nothing has rounded so far
    inside = {n for u in view.unit_of.values() for n in u.nodes}
    count = 0
    for node in list(view.gm.graph.nodes):
        unit = view.unit_of.get(node)
        if unit is None:
            if node.op != "output" and node not in inside and not is_quantize(node) and not is_dequantize(node):
                _read_exact(view, node, exact)
                exact.update([node] if exact.issuperset(node.all_input_nodes) else [])
            continue
        end = only_quantize(unit.output)
        sources = [view.unrounded(n) for n in unit.inputs]
        if end is None or not all(s in exact and len(view.values[s].shape) == 4 for s in sources if s is not None):
            continue
        if None in sources or unit.row.output not in (Output.OBSERVED, Output.FIXED) or binding(unit).float_output:
            continue
        extra = _extra_milliseconds(view, unit, end, costs)
        if extra > budget:
            continue
        budget -= max(extra, 0.0)
        for pair, source in zip(unit.inputs, sources, strict=True):
            unit.root.replace_input_with(pair, source)  # type: ignore[arg-type]
        exact.add(unit.output)
        count += 1
    return count


def _read_exact(view: ProgramView, node: fx.Node, exact: set[fx.Node]) -> None:
    """Let an fp32 op read exact values without rounding them for it."""
    for pair in node.all_input_nodes:
        source = view.unrounded(pair)
        if source in exact:
            node.replace_input_with(pair, source)


def _extra_milliseconds(view: ProgramView, unit: Unit, end: fx.Node, costs: Costs) -> float:
    """How much longer it takes to compute ``unit`` on unrounded inputs than to round them first."""
    inside = view.call(unit, pair_qparams(end))
    operands = tuple(Operand(None, o.shape) for o in inside.inputs)
    entry: Int8Call = replace(inside, op=f"entry {inside.op}", inputs=operands, packed={})
    known = [k for n in unit.inputs if (k := pair_qparams(n)) is not None]
    rounded = [quantized_entry(entry, c, known) for c in view.candidates(unit, inside)]
    times = costs(entry, [in_fp32(entry), *rounded])
    return times[FP32_ENTRY] - min(t for name, t in times.items() if name != FP32_ENTRY)


def _weighted_milliseconds(view: ProgramView, costs: Costs) -> float:
    """The time of the convolutions and linear layers in int8: about that of the whole model."""
    total = 0.0
    units = list(view.unit_of.values())
    for unit in progress(units, "time layers", "op", len(units)):
        end = only_quantize(unit.output)
        if unit.row.weighted and end is not None and all(pair_qparams(n) for n in unit.inputs):
            call = view.call(unit, pair_qparams(end))
            fastest = min(costs(call, view.candidates(unit, call)).values())
            total += fastest if math.isfinite(fastest) else 0.0
    return total
