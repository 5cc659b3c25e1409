"""Drop the quantize/dequantize pairs that a fused step does not need.

An elementwise op is computed in registers, in the step of the op before it. Its input is not rounded then: the result
is rounded once instead of twice, as the executed graph shows.
"""

from __future__ import annotations

from torch import fx

from ...base.frozen_nodes import is_dequantize
from ...base.program import FrozenProgram
from ...ops.units import match_units

ELEMENTWISE = frozenset(
    (
        "add", "mul", "relu", "relu6", "hardtanh", "clamp", "hardswish", "hardsigmoid", "sigmoid", "tanh", "silu",
        "leaky_relu", "prelu", "elu", *(f"batch_norm{d}d" for d in (1, 2, 3)),
    )
)  # fmt: skip
SUMS = frozenset(
    (
        "linear", "mean", *(f"conv{d}d" for d in (1, 2, 3)), *(f"conv_transpose{d}d" for d in (1, 2, 3)),
        *(f"{kind}avg_pool{d}d" for kind in ("", "adaptive_") for d in (1, 2, 3)),
    )
)  # fmt: skip


def drop_pairs(program: FrozenProgram) -> int:
    """Let elementwise ops read unrounded values of the op before them. Returns how many do."""
    gm, values = program.module, program.values
    units = {u.output: u for u in match_units(gm).units if u.root not in program.fp32}
    has_sum: dict[fx.Node, bool] = {u.output: u.row.name in SUMS for u in units.values()}
    count = 0
    for unit in units.values():
        if unit.row.name not in ELEMENTWISE:
            continue
        for pair in reversed(unit.inputs):
            source = _source(pair)
            first = units.get(source) if source is not None else None
            if source is None or first is None or first.row.name not in ELEMENTWISE | SUMS:
                continue
            small = values[source].shape != values[unit.output].shape
            if has_sum[first.output] and has_sum[unit.output] and not small:
                continue  # a step has one sum
            unit.root.replace_input_with(pair, source)
            has_sum[unit.output] |= has_sum[first.output] and not small
            count += 1
    gm.graph.eliminate_dead_code()
    gm.recompile()
    return count


def _source(pair: fx.Node) -> fx.Node | None:
    """What a pair rounds, if the op after the pair is all that reads it."""
    if not is_dequantize(pair) or len(pair.users) != 1:
        return None
    quantized: fx.Node = pair.args[0]  # type: ignore[assignment]
    source: fx.Node = quantized.args[0]  # type: ignore[assignment]
    return source if len(quantized.users) == 1 and len(source.users) == 1 else None
