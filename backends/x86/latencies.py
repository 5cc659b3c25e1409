"""How long each op takes in int8 and in fp32, and each conversion between them, measured on their real shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import fx

from ...compiler.qdq import quantize
from ...compiler.types import QParams
from ..base import Latencies, Output
from ..units import Unit, unit_name
from .calls import Candidate, Int8Call, Operand
from .emitter import Emitter
from .frozen_graph import FrozenGraph, quantize_of
from .kernels.fp32 import in_fp32
from .tune import Tuner

_ANY = QParams(1 / 64, 128)  # no kernel's speed depends on it


def measure_latencies(graph: FrozenGraph, tuner: Tuner) -> Latencies:
    """Of every int8 unit of ``graph``, and of the values that they make and read."""
    int8, fp32 = dict[str, float](), dict[str, float]()
    quantized, dequantized = dict[str, float](), dict[str, float]()
    for unit in graph.unit_of.values():
        name = unit.root.name
        int8[name], fp32[name] = _unit(graph, unit, tuner) if _is_plain(graph, unit) else (0.0, 0.0)
        for value in (*(graph.unrounded(n) or n for n in unit.inputs), unit.output):
            if value.name not in quantized and value in graph.values:
                shape = graph.values[value].shape
                quantized[value.name] = _border(graph, shape, tuner, to_int8=True)
                dequantized[value.name] = _border(graph, shape, tuner, to_int8=False)
    return Latencies(int8, fp32, quantized, dequantized)


def _is_plain(graph: FrozenGraph, unit: Unit) -> bool:
    """Whether the unit is measured: it makes one tensor, of the float tensors it reads and constants alone."""
    if unit.rule.output is Output.WEIGHT_ONLY or unit.output not in graph.values:
        return False
    parameters = [n for n in unit.root.all_input_nodes if n not in unit.inputs]
    return all(n in graph.values and graph.qparams(n) is not None for n in unit.inputs) and (
        graph.weight(unit.root) is not None or not parameters
    )


def _unit(graph: FrozenGraph, unit: Unit, tuner: Tuner) -> tuple[float, float]:
    """Milliseconds in int8 and in fp32."""
    end = quantize_of(unit.output)
    call = graph.call(unit, graph.qparams(end) if end is not None else None)
    if unit.rule.output is Output.SHARED:
        candidates = [_on_integers(call)]
    elif call.out is None:
        candidates = [_behind_dequantize(c) for c in unit.rule.kernels(call)] if unit.rule.float_output else []
    else:
        candidates = graph.candidates(unit.rule, call)
    operands = tuple(Operand(None, o.shape) for o in call.inputs)
    name = f"fp32 {unit_name(unit, graph.table)}"
    exact: Int8Call = replace(call, op=name, inputs=operands, out=None, packed={})
    ms = _fastest(tuner, exact, [in_fp32(exact)])
    return (_fastest(tuner, call, candidates) if candidates else ms), ms


def _border(graph: FrozenGraph, shape: tuple[int, ...], tuner: Tuner, to_int8: bool) -> float:
    """Milliseconds of converting a value of ``shape``."""
    pair = next(n for n in graph.gm.graph.nodes if n.op == "call_function" and n.target is quantize)
    name, given, out = ("quantize", None, _ANY) if to_int8 else ("dequantize", _ANY, None)
    call = Int8Call(name, pair, (Operand(given, shape),), out)

    def build(emitter: Emitter, inputs: Sequence[fx.Node]) -> fx.Node:
        return emitter.quantize(inputs[0], _ANY, len(shape) == 4) if to_int8 else emitter.dequantize(inputs[0])

    return _fastest(tuner, call, [Candidate(name, build)])


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


def _fastest(tuner: Tuner, call: Int8Call, candidates: Sequence[Candidate]) -> float:
    times = tuner.measure(call, candidates)
    return min((times[c.kernel] for c in candidates if math.isfinite(times[c.kernel])), default=math.inf)
