"""Ops that are slower in int8 than in fp32, conversions included.

The ops are split between int8 and fp32 by a minimum cut (:mod:`.precision_cut`) over their times, with a head start
for int8, so that small errors of the times decide nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import networkx as nx

from ...backends.base.op import Output
from ...backends.ops.units import Unit
from .assignment import BORDERS_COST_MORE, INPUT_IS_FP32, Assignment
from .precision_cut import PrecisionCosts

HEAD_START = 1.1  # fp32 must be faster by this factor
LEAST_GAIN = 0.02, 0.2  # of the time of all these ops, and in milliseconds: a smaller gain changes nothing


def slower_ops(
    costs: PrecisionCosts, assignment: Assignment, free: Sequence[Unit], fp32: Mapping[str, str], measured: bool
) -> dict[str, str]:
    """Ops that a minimum cut puts into fp32, with their reasons by name.

    Args:
        costs: of every mix, see :mod:`.latency_costs`.
        assignment: of the model.
        free: the units that may be moved.
        fp32: ops that are fp32 anyway; they are not in the result.
        measured: the times were measured, not estimated.
    """
    units = {u.root.name: u for u in assignment.int8_units}
    # An op that is fp32 anyway is not fused: the op before it is free.
    needs = [(a, b) for a, b in costs.needs if b not in fp32 or units[a].row.output is Output.SHARED]
    costs = replace(costs, needs=needs)
    chosen = _cheapest(costs, units, free, fp32)
    everything = frozenset(units)
    reasons: dict[str, str] = {}
    for group in _neighbors(costs, everything - chosen - fp32.keys()):
        lost = costs.total(chosen | group) - costs.total(chosen)
        for op in group:
            if units[op].row.output is Output.SHARED:
                reasons[op] = INPUT_IS_FP32
            elif 0 < lost < math.inf:
                ops = f"this and {len(group) - 1} ops around it" if len(group) > 1 else "this op"
                how = "measured" if measured else "estimated"
                reasons[op] = f"{how}: {ops} would take {lost:.2g} ms longer in int8, conversions included"
            else:
                reasons[op] = BORDERS_COST_MORE
    return reasons


def _cheapest(
    costs: PrecisionCosts, units: Mapping[str, Unit], free: Sequence[Unit], fp32: Mapping[str, str]
) -> frozenset[str]:
    """The ops in int8 in the fastest choice, if that is worth a change."""
    handicapped = replace(costs, fp32={op: HEAD_START * ms for op, ms in costs.fp32.items()})
    movable = {u.root.name for u in free} | {n for n, u in units.items() if u.row.output is Output.SHARED}
    fixed = {op: op not in fp32 for op in units if op in fp32 or op not in movable}
    everything = frozenset(units)
    chosen, unchanged = handicapped.cheapest(fixed=fixed), everything
    if fp32:
        weighted = {op: True for op, unit in units.items() if unit.row.weighted}
        unchanged = handicapped.cheapest(fixed=weighted | fixed)
    share, milliseconds = LEAST_GAIN
    gain = costs.total(unchanged) - costs.total(chosen)
    return unchanged if gain < max(share * costs.total(everything), milliseconds) else chosen


def _neighbors(costs: PrecisionCosts, ops: frozenset[object]) -> list[frozenset[str]]:
    """``ops`` in groups that pass values to each other."""
    graph: nx.Graph[object] = nx.Graph()
    graph.add_nodes_from(ops)
    for value in costs.crossings:
        graph.add_edges_from((value.maker, r) for r in value.readers if value.maker in ops and r in ops)
    return [frozenset(map(str, group)) for group in nx.connected_components(graph)]
