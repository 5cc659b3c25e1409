"""How long each op takes in int8 and in fp32, and each conversion between them, on their real shapes.

Where times are measured, those that are compared are measured in turns: the kernels of an op, its fp32 form, and the
conversions of its output.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torch import fx

from ....compiler.core.progress import progress
from ....compiler.core.qparams import QParams
from ...base.backend import Latencies
from ...base.frozen_nodes import is_quantize, pair_qparams
from ...base.op import Output
from ...ops.units import Unit
from ..codegen.emitter import Emitter
from ..kernels.calls import Candidate, Int8Call, Operand
from ..kernels.fp32 import FP32, in_fp32
from ..tuning.tuner import Costs
from .fuse import TOLERANCE, fusable, fused_call
from .program_view import ProgramView, binding, only_quantize

_ANY = QParams(1 / 64, 128)  # no kernel's speed depends on it
_FP32, _QUANTIZE, _DEQUANTIZE = "fp32", "quantize", "dequantize"


def find_latencies(view: ProgramView, costs: Costs) -> Latencies:
    """Times of every int8 unit, and of the conversions of the values that they make and read."""
    found = Latencies()
    units = list(view.unit_of.values())
    int8 = {unit: _add_unit(view, unit, costs, found) for unit in progress(units, "time ops", "op", len(units))}
    _add_borders(view, costs, found)
    for unit, milliseconds in int8.items():
        if milliseconds is None:  # fp32 between conversions costs just these
            inside = sum(found.dequantize[_rounded(view, n)] for n in unit.inputs)
            milliseconds = found.fp32[unit.root.name] + inside + found.quantize[unit.output.name]
        found.int8[unit.root.name] = milliseconds
    return found


def _add_unit(view: ProgramView, unit: Unit, costs: Costs, found: Latencies) -> float | None:
    """Milliseconds in int8; None if fp32 between conversions is faster. The other times are added to ``found``."""
    if not _is_plain(view, unit):
        found.fp32[unit.root.name] = 0.0
        return 0.0
    first, fused, before = _fused(view, unit)
    call = _call(view, unit, first)
    kernels = list(_kernels(view, unit, call))
    times = costs(call, [*kernels, *fused, *before, _in_fp32(call), *_borders(view.values[unit.output].shape)])
    value = unit.output.name
    found.fp32[unit.root.name] = times[_FP32]
    found.quantize[value], found.dequantize[value] = times[_QUANTIZE], times[_DEQUANTIZE]
    alone, added = _least(times, kernels), _least(times, fused) - _least(times, before)
    if first is not None and added <= alone * TOLERANCE:
        found.fused[unit.root.name] = first.root.name
        return max(added, 0.0)
    return None if times.get(FP32) == alone or not math.isfinite(alone) else alone


def _is_plain(view: ProgramView, unit: Unit) -> bool:
    """Whether the unit can be measured: it computes one tensor, of float tensors and constants alone."""
    if unit.row.output is Output.WEIGHT_ONLY or unit.output not in view.values:
        return False
    parameters = [n for n in unit.root.all_input_nodes if n not in unit.inputs]
    return all(n in view.values and pair_qparams(n) is not None for n in unit.inputs) and (
        view.weight(unit.root) is not None or not parameters
    )


def _call(view: ProgramView, unit: Unit, first: Unit | None) -> Int8Call:
    """The call, under a name of its own in the cache: times of different moments do not compare."""
    end = only_quantize(unit.output)
    call = view.call(unit, pair_qparams(end) if end is not None else None)
    behind = f" behind {view.call(first, call.out).signature()}" if first is not None else ""
    return replace(call, op=f"{unit.name} or fp32{behind}")


def _kernels(view: ProgramView, unit: Unit, call: Int8Call) -> Iterator[Candidate]:
    """The ways to run the unit in int8."""
    known = binding(unit)
    if unit.row.output is Output.SHARED:
        yield _on_integers(call)
    elif call.out is not None:
        yield from view.candidates(unit, call)
    elif known.float_output and known.kernels is not None:
        yield from map(_behind_dequantize, known.kernels(call))


def _fused(view: ProgramView, unit: Unit) -> tuple[Unit | None, list[Candidate], list[Candidate]]:
    """The unit that this one can be fused into, the kernels of both in one, and the kernels of that unit alone."""
    for value in unit.inputs:
        first = fusable(view, value, unit)
        whole = fused_call(view, first, unit, value) if first is not None else None
        if first is None or whole is None:
            continue
        alone = view.call(first, pair_qparams(value))
        both = binding(first).fused[unit.row.name](whole)
        return (
            first,
            [replace(c, kernel=f"fused {c.kernel}", inputs=whole.inputs) for c in both],
            [replace(c, kernel=f"before: {c.kernel}", inputs=alone.inputs) for c in view.candidates(first, alone)],
        )
    return None, [], []


def _least(times: Mapping[str, float], candidates: Sequence[Candidate]) -> float:
    return min((times[c.kernel] for c in candidates), default=math.inf)


def _in_fp32(call: Int8Call) -> Candidate:
    operands = tuple(Operand(None, o.shape) for o in call.inputs)
    return replace(in_fp32(replace(call, inputs=operands, out=None)), kernel=_FP32, inputs=operands)


def _borders(shape: tuple[int, ...]) -> tuple[Candidate, Candidate]:
    """The conversions of a value of ``shape``."""

    def to_int8(emitter: Emitter, inputs: Sequence[fx.Node]) -> fx.Node:
        return emitter.quantize(inputs[0], _ANY, len(shape) == 4)

    def to_fp32(emitter: Emitter, inputs: Sequence[fx.Node]) -> fx.Node:
        return emitter.dequantize(inputs[0])

    quantized = Candidate(_QUANTIZE, to_int8, (Operand(None, shape),))
    return quantized, Candidate(_DEQUANTIZE, to_fp32, (Operand(_ANY, shape),))


def _add_borders(view: ProgramView, costs: Costs, found: Latencies) -> None:
    """Add the conversions of values that no int8 unit makes."""
    for pair in filter(is_quantize, view.gm.graph.nodes):
        value: fx.Node = pair.args[0]
        if value in view.values and value.name not in found.quantize:
            shape = view.values[value].shape
            times = costs(Int8Call("border", pair, (Operand(None, shape),), _ANY), _borders(shape))
            found.quantize[value.name], found.dequantize[value.name] = times[_QUANTIZE], times[_DEQUANTIZE]


def _rounded(view: ProgramView, pair: fx.Node) -> str:
    """The name of the value that a ``dequantize`` was rounded from."""
    source = view.unrounded(pair)
    assert source is not None
    return source.name


def _on_integers(call: Int8Call) -> Candidate:
    """An op that works on integers as they are."""

    def build(emitter: Emitter, inputs: Sequence[fx.Node]) -> fx.Node:
        given = iter(inputs)
        return emitter.graph.node_copy(call.node, lambda _: next(given))

    return Candidate("on integers", build)


def _behind_dequantize(inner: Candidate) -> Candidate:
    """``inner``, which takes fp32 and rounds it itself, on an int8 input."""

    def build(emitter: Emitter, inputs: Sequence[fx.Node]) -> fx.Node:
        return inner.build(emitter, [emitter.dequantize(x) for x in inputs])

    return replace(inner, kernel=f"dequantize + {inner.kernel}", build=build)
