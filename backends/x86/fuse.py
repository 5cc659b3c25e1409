"""Fusing an op into the convolution or linear layer before it, where that is measured to be faster.

In the frozen graph the two stand apart with a quantize/dequantize pair between them. Fusing drops the pair: the
result is rounded once instead of twice, and the graph stays a true account of what is executed.
"""

from __future__ import annotations

from torch import fx

from ...compiler.qdq import dequantize
from ..base import Output
from ..units import Unit
from .calls import Int8Call
from .frozen_graph import FrozenGraph, quantize_of
from .tune import Tuner

# Fused wins ties and small losses: it saves a rounding, and in a whole graph the dispatch of an op.
TOLERANCE = 1.05


def fuse(graph: FrozenGraph, tuner: Tuner) -> int:
    """Drop the pairs that fused kernels make needless. Returns the number of fusions."""
    count = 0
    overwritten: set[fx.Node] = set()
    for unit in list(graph.unit_of.values()):
        for value in unit.inputs:
            first = fusable(graph, value, unit)
            # Fusing moves `first` to the place of `unit`: what it reads must live until then.
            if first is None or any(n in overwritten for n in first.inputs):
                continue
            if _pays(graph, first, value, unit, tuner):
                residuals = [n for n in unit.inputs if n is not value]
                overwritten.update(pair for n in residuals for pair in n.args[0].users)  # type: ignore[union-attr]
                unit.root.replace_input_with(value, first.output)
                count += 1
                break
    graph.gm.graph.eliminate_dead_code()
    graph.gm.recompile()
    return count


def fused_call(graph: FrozenGraph, first: Unit, second: Unit, link: fx.Node) -> Int8Call | None:
    """``first`` with ``second`` behind it as one call; ``link`` is what ``second`` reads of ``first``."""
    quantized = quantize_of(second.output)
    if quantized is None:
        return None
    rest = tuple(n for n in second.inputs if n is not link)
    call = graph.call(first, graph.qparams(quantized), (*first.inputs, *rest))
    whole = graph.call(second, call.out, ())
    return Int8Call(
        call.op,
        call.node,
        call.inputs,
        call.out,
        whole.clamp,
        call.weight,
        call.bias,
        None,
        (second.rule.name, second.root),
    )


def fusable(graph: FrozenGraph, value: fx.Node, second: Unit) -> Unit | None:
    """The unit behind ``value`` if ``second`` may be fused into it."""
    if value.target is not dequantize or len(value.users) != 1:
        return None
    quantized: fx.Node = value.args[0]  # type: ignore[assignment]
    source: fx.Node = quantized.args[0]  # type: ignore[assignment]
    first = graph.unit_of.get(source)
    if first is None or len(quantized.users) != 1 or len(source.users) != 1 or len(first.nodes) > 1:
        return None
    if second.rule.name not in first.rule.fused or not all(graph.qparams(n) for n in first.inputs):
        return None
    rest = [n for n in second.inputs if n is not value]
    if len(rest) != second.rule.inputs - 1 or graph.values[source].shape != graph.values[second.output].shape:
        return None  # y + y, y + 1, or a sum that spreads the convolution's output
    return first if all(_dies(graph, n, first, second) for n in rest) else None


def _dies(graph: FrozenGraph, residual: fx.Node, first: Unit, second: Unit) -> bool:
    """Whether ``residual`` may be overwritten: nothing reads it, or shares its memory, when ``second`` runs."""
    own = graph.qparams(residual)
    end = quantize_of(second.output)
    if own is None or end is None or graph.values[residual].shape != graph.values[second.output].shape:
        return False
    quantized: fx.Node = residual.args[0]  # type: ignore[assignment]
    maker = graph.unit_of.get(quantized.args[0])  # type: ignore[arg-type]
    if maker is not None and maker.rule.output is Output.SHARED and not maker.rule.keeps_channels:
        return False
    units = {u.root: u for u in graph.unit_of.values()}
    for pair in quantized.users:
        for reader in pair.users:
            if reader is second.root:
                continue
            unit = units.get(reader)
            done = quantize_of(unit.output) if unit else None
            if unit is None or done is None or unit.rule.output is Output.SHARED or unit is first:
                return False
            if graph.order[done] >= graph.order[end]:
                return False
    return True


def _pays(graph: FrozenGraph, first: Unit, link: fx.Node, second: Unit, tuner: Tuner) -> bool:
    fused = fused_call(graph, first, second, link)
    if fused is None:
        return False
    candidates = first.rule.fused[second.rule.name](fused)
    if not candidates:
        return False
    apart = 0.0
    for unit, out in ((first, graph.qparams(link)), (second, fused.out)):
        call = graph.call(unit, out)
        apart += min(tuner.measure(call, graph.candidates(unit.rule, call)).values())
    return min(tuner.measure(fused, candidates).values()) <= apart * TOLERANCE
