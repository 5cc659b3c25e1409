"""How long each op takes in int8 and in fp32, and each conversion between them, measured on their real shapes.

What is compared is measured in turns: an op's kernels, its fp32 form, and the conversions of its output.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torch import fx

from ...compiler.qdq import quantize
from ...compiler.types import QParams
from ..base import Latencies, Output
from ..units import Unit, unit_name
from .calls import Candidate, Int8Call, Operand
from .emitter import Emitter
from .frozen_graph import FrozenGraph, quantize_of
from .fuse import TOLERANCE, fusable, fused_call
from .kernels.fp32 import FP32, in_fp32
from .tune import Tuner

_ANY = QParams(1 / 64, 128)  # no kernel's speed depends on it
_FP32, _QUANTIZE, _DEQUANTIZE = "fp32", "quantize", "dequantize"


def measure_latencies(graph: FrozenGraph, tuner: Tuner) -> Latencies:
    """Of every int8 unit of ``graph``, and of the values that they make and read."""
    found = Latencies({}, {}, {}, {}, {})
    measured = {unit: _unit(graph, unit, tuner, found) for unit in graph.unit_of.values()}
    _measure_borders(graph, tuner, found)
    for unit, milliseconds in measured.items():
        if milliseconds is None:  # what is fp32 between conversions costs just these
            inside = sum(found.dequantize[_rounded(graph, n)] for n in unit.inputs)
            milliseconds = found.fp32[unit.root.name] + inside + found.quantize[unit.output.name]
        found.int8[unit.root.name] = milliseconds
    return found


def _unit(graph: FrozenGraph, unit: Unit, tuner: Tuner, found: Latencies) -> float | None:
    """Milliseconds in int8, None where that is best done in fp32 between conversions; the rest goes to ``found``."""
    if not _is_plain(graph, unit):
        found.fp32[unit.root.name] = 0.0
        return 0.0
    first, fused, before = _fused(graph, unit)
    call = _call(graph, unit, first)
    kernels = list(_kernels(graph, unit, call))
    times = tuner.measure(call, [*kernels, *fused, *before, _in_fp32(call), *_borders(graph.values[unit.output].shape)])
    value = unit.output.name
    found.fp32[unit.root.name] = times[_FP32]
    found.quantize[value], found.dequantize[value] = times[_QUANTIZE], times[_DEQUANTIZE]
    alone, added = _least(times, kernels), _least(times, fused) - _least(times, before)
    if first is not None and added <= alone * TOLERANCE:
        found.fused[unit.root.name] = first.root.name
        return max(added, 0.0)
    return None if times.get(FP32) == alone or not math.isfinite(alone) else alone


def _is_plain(graph: FrozenGraph, unit: Unit) -> bool:
    """Whether the unit is measured: it makes one tensor, of the float tensors it reads and constants alone."""
    if unit.rule.output is Output.WEIGHT_ONLY or unit.output not in graph.values:
        return False
    parameters = [n for n in unit.root.all_input_nodes if n not in unit.inputs]
    return all(n in graph.values and graph.qparams(n) is not None for n in unit.inputs) and (
        graph.weight(unit.root) is not None or not parameters
    )


def _call(graph: FrozenGraph, unit: Unit, first: Unit | None) -> Int8Call:
    """The call, under a name of its own in the cache: times of different moments do not compare."""
    end = quantize_of(unit.output)
    call = graph.call(unit, graph.qparams(end) if end is not None else None)
    behind = f" behind {graph.call(first, call.out).signature()}" if first is not None else ""
    return replace(call, op=f"{unit_name(unit, graph.table)} or fp32{behind}")


def _kernels(graph: FrozenGraph, unit: Unit, call: Int8Call) -> Iterator[Candidate]:
    """The ways to run the unit in int8."""
    if unit.rule.output is Output.SHARED:
        yield _on_integers(call)
    elif call.out is not None:
        yield from graph.candidates(unit.rule, call)
    elif unit.rule.float_output:
        yield from map(_behind_dequantize, unit.rule.kernels(call))


def _fused(graph: FrozenGraph, unit: Unit) -> tuple[Unit | None, list[Candidate], list[Candidate]]:
    """The unit before that this one can be fused into, the kernels of both in one, and those of that one alone."""
    for value in unit.inputs:
        first = fusable(graph, value, unit)
        whole = fused_call(graph, first, unit, value) if first is not None else None
        if first is None or whole is None:
            continue
        alone = graph.call(first, graph.qparams(value))
        return (
            first,
            [Candidate(f"fused {c.kernel}", c.build, whole.inputs) for c in first.rule.fused[unit.rule.name](whole)],
            [Candidate(f"before: {c.kernel}", c.build, alone.inputs) for c in graph.candidates(first.rule, alone)],
        )
    return None, [], []


def _least(times: Mapping[str, float], candidates: Sequence[Candidate]) -> float:
    return min((times[c.kernel] for c in candidates), default=math.inf)


def _in_fp32(call: Int8Call) -> Candidate:
    operands = tuple(Operand(None, o.shape) for o in call.inputs)
    return Candidate(_FP32, in_fp32(replace(call, inputs=operands, out=None)).build, operands)


def _borders(shape: tuple[int, ...]) -> tuple[Candidate, Candidate]:
    """The conversions of a value of ``shape``."""

    def to_int8(emitter: Emitter, inputs: Sequence[fx.Node]) -> fx.Node:
        return emitter.quantize(inputs[0], _ANY, len(shape) == 4)

    def to_fp32(emitter: Emitter, inputs: Sequence[fx.Node]) -> fx.Node:
        return emitter.dequantize(inputs[0])

    quantized = Candidate(_QUANTIZE, to_int8, (Operand(None, shape),))
    return quantized, Candidate(_DEQUANTIZE, to_fp32, (Operand(_ANY, shape),))


def _measure_borders(graph: FrozenGraph, tuner: Tuner, found: Latencies) -> None:
    """Add the conversions of values that no int8 unit makes."""
    pairs = [n for n in graph.gm.graph.nodes if n.op == "call_function" and n.target is quantize]
    for pair in pairs:
        value: fx.Node = pair.args[0]
        if value in graph.values and value.name not in found.quantize:
            shape = graph.values[value].shape
            times = tuner.measure(Int8Call("border", pair, (Operand(None, shape),), _ANY), _borders(shape))
            found.quantize[value.name], found.dequantize[value.name] = times[_QUANTIZE], times[_DEQUANTIZE]


def _rounded(graph: FrozenGraph, pair: fx.Node) -> str:
    """The name of the value that a ``dequantize`` was rounded from."""
    source = graph.unrounded(pair)
    assert source is not None
    return source.name


def _on_integers(call: Int8Call) -> Candidate:
    """An op that passes integers through."""

    def build(emitter: Emitter, inputs: Sequence[fx.Node]) -> fx.Node:
        given = iter(inputs)
        return emitter.graph.node_copy(call.node, lambda _: next(given))

    return Candidate("on integers", build)


def _behind_dequantize(inner: Candidate) -> Candidate:
    """``inner``, which takes and gives fp32 and rounds its input itself, on an int8 input."""

    def build(emitter: Emitter, inputs: Sequence[fx.Node]) -> fx.Node:
        return inner.build(emitter, [emitter.dequantize(x) for x in inputs])

    return Candidate(f"dequantize + {inner.kernel}", build)
