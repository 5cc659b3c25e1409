"""Where the first int8 ops read what is still exact: they may compute in fp32, if that costs little of the whole.

With three channels the int8 kernels gain little, but what is lost by rounding the input and the first activations no
later layer gives back: it is up to a quarter of all noise (``docs/decisions.md``). So the pairs between the input and
the first ops are dropped, op by op, as long as the measured time allows. Weights stay int8.
"""

from __future__ import annotations

import math
from dataclasses import replace

from torch import fx

from ...compiler.qdq import dequantize, quantize
from ..base import Output
from ..units import Unit
from .calls import Int8Call, Operand
from .frozen_graph import FrozenGraph, quantize_of
from .kernels.fp32 import FP32_ENTRY, in_fp32, quantized_entry
from .tune import Tuner

SHARE = 0.1  # of the time of all weighted ops that an entry in fp32 may cost


def enter_in_fp32(graph: FrozenGraph, tuner: Tuner) -> int:
    """Drop the pairs in front of the first ops. Returns the number of ops that compute in fp32 for it."""
    budget = SHARE * _weighted_milliseconds(graph, tuner)
    exact: set[fx.Node] = set()  # what nothing has rounded so far
    inside = {n for u in graph.unit_of.values() for n in u.nodes}
    count = 0
    for node in list(graph.gm.graph.nodes):
        unit = graph.unit_of.get(node)
        if unit is None:
            if node.op != "output" and node not in inside and node.target not in (quantize, dequantize):
                _read_exact(graph, node, exact)
                exact.update([node] if exact.issuperset(node.all_input_nodes) else [])
            continue
        end = quantize_of(unit.output)
        sources = [graph.unrounded(n) for n in unit.inputs]
        if end is None or not all(s in exact and len(graph.values[s].shape) == 4 for s in sources if s is not None):
            continue
        if None in sources or unit.rule.output not in (Output.OBSERVED, Output.FIXED) or unit.rule.float_output:
            continue
        extra = _extra_milliseconds(graph, unit, end, tuner)
        if extra > budget:
            continue
        budget -= max(extra, 0.0)
        for pair, source in zip(unit.inputs, sources, strict=True):
            unit.root.replace_input_with(pair, source)  # type: ignore[arg-type]
        exact.add(unit.output)
        count += 1
    return count


def _read_exact(graph: FrozenGraph, node: fx.Node, exact: set[fx.Node]) -> None:
    """Let an fp32 op read values that are exact without rounding them for it."""
    for pair in node.all_input_nodes:
        source = graph.unrounded(pair)
        if source in exact:
            node.replace_input_with(pair, source)


def _extra_milliseconds(graph: FrozenGraph, unit: Unit, end: fx.Node, tuner: Tuner) -> float:
    """What computing ``unit`` before it is rounded costs more than rounding what it reads."""
    inside = graph.call(unit, graph.qparams(end))
    operands = tuple(Operand(None, o.shape) for o in inside.inputs)
    entry: Int8Call = replace(inside, op=f"entry {inside.op}", inputs=operands, packed={})
    known = [k for n in unit.inputs if (k := graph.qparams(n)) is not None]
    rounded = [quantized_entry(entry, c, known) for c in graph.candidates(unit.rule, inside)]
    times = tuner.measure(entry, [in_fp32(entry), *rounded])
    return times[FP32_ENTRY] - min(t for name, t in times.items() if name != FP32_ENTRY)


def _weighted_milliseconds(graph: FrozenGraph, tuner: Tuner) -> float:
    """What the convolutions and linear layers of the graph take in int8, roughly that of the whole."""
    total = 0.0
    for unit in graph.unit_of.values():
        end = quantize_of(unit.output)
        if unit.rule.weighted and end is not None and all(graph.qparams(n) for n in unit.inputs):
            call = graph.call(unit, graph.qparams(end))
            fastest = min(tuner.measure(call, graph.candidates(unit.rule, call)).values())
            total += fastest if math.isfinite(fastest) else 0.0
    return total
