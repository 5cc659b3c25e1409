"""The first values of a model in 16 bits, where that costs little of the whole time.

The error of rounding the input and the first activations to 8 bits cannot be recovered later: it is up to a quarter of
all noise (``docs/decisions.md``). The first layers have few channels, so that products of 16 bits cost little there.
They are as exact as those of 8.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor, fx

from ....compiler.core.qparams import QParams
from ....compiler.execution.graphs import attribute
from ....compiler.numerics.quantize import dequantize_channels
from ...base.frozen_nodes import is_dequantize, is_quantize, literal_qparams
from ...base.program import FrozenProgram
from ...ops.units import Unit, match_units
from .drop_pairs import ELEMENTWISE

PRODUCTS = (2**31 - 1) // (2**15 * 2**7)  # of s16 and s8, whose sum an int32 holds
FEW = 320  # products of an output: with more, 8 bits are twice as fast
ROOM = 2.0  # how much larger than in calibration a value may be
SHARE = 0.2  # of the time of all layers that 16 bits may cost
CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
DEPTHWISE = 8.0  # time of a product of a depthwise convolution, in those of others
ELEMENT = 16.0  # time to write and read an element of 16 bits, in products


def widen_entry(program: FrozenProgram) -> int:
    """Give the first values 16 bits. Returns how many."""
    gm = program.module
    units = {n: u for u in match_units(gm).units if u.root not in program.fp32 for n in u.nodes}
    budget = SHARE * sum(_cost(program, u) for u in set(units.values()))
    exact: set[fx.Node] = set()
    count = 0
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            exact.add(node)
        elif is_quantize(node) and node.args[0] in exact:
            pairs = list(node.users)
            readers = {units.get(user) for pair in pairs for user in pair.users}
            fits = readers and all(map(is_dequantize, pairs)) and all(u and _fits(gm, u) for u in readers)
            extra = sum(_cost(program, u) for u in readers if u) if fits else math.inf
            extra += ELEMENT * math.prod(program.values[node].shape)
            if extra <= budget:
                budget -= extra
                _widen(node, pairs)
                exact.update(pairs)
                count += 1
        elif node in units and exact.issuperset(
            units[node].inputs if node is units[node].root else node.all_input_nodes
        ):
            exact.add(node)
    gm.recompile()
    return count


def _widen(node: fx.Node, pairs: Iterable[fx.Node]) -> None:
    known = literal_qparams(node)
    top = ROOM * max(-known.low, known.high)
    wide = QParams(top / 32767, 0, -32768, 32767)
    node.args = (node.args[0], wide.scale, wide.zero_point, wide.qmin, wide.qmax)
    for pair in pairs:
        pair.args = (node, wide.scale, wide.zero_point)


def _fits(gm: fx.GraphModule, unit: Unit) -> bool:
    """Whether it is elementwise, a pool, or a convolution whose sums of 16-bit products an int32 holds."""
    if unit.row.name in ELEMENTWISE or "pool" in unit.row.name or unit.row.name == "mean":
        return True
    integers = _integers(gm, unit)
    groups = unit.root.kwargs.get("groups", 1)
    if unit.row.name not in CONVOLUTIONS or integers is None or integers[0].numel() > min(FEW, PRODUCTS):
        return False
    return bool(groups == 1 or groups == integers.shape[0])


def _cost(program: FrozenProgram, unit: Unit) -> float:
    """The time of a layer, in products; 16 bits cost as much again."""
    integers = _integers(program.module, unit)
    if not unit.row.weighted or integers is None:
        return 0.0
    each = DEPTHWISE if unit.root.kwargs.get("groups", 1) == integers.shape[0] else 1.0
    return each * math.prod(program.values[unit.root].shape) * math.prod(integers.shape[1:])


def _integers(gm: fx.GraphModule, unit: Unit) -> Tensor | None:
    """The integer weight of a layer."""
    weight = unit.root.args[1] if unit.row.weighted and len(unit.root.args) > 1 else None
    if not isinstance(weight, fx.Node) or weight.target is not dequantize_channels:
        return None
    return attribute(gm, weight.args[0])  # type: ignore[arg-type]
