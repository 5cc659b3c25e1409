"""Ops that stay in fp32 because int8 ruins the model's output there, or is slower: what needs no data with labels.

Both are measured. Accuracy: where the int8 model as a whole brings the output below :data:`LEAST_SQNR`, each op that
alone does is left out, and then as many of the next worst as it takes. Speed: the ops are split between int8 and fp32
by a minimum cut (:mod:`.precision_cut`) over measured times, with a head start for int8, so that noise decides nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import networkx as nx
from torch import fx

from ..backends.base import Backend, Frozen, Output
from ..backends.units import Unit
from ..compiler.batches import Batch
from ..compiler.lockstep import Stepper, Twin, sqnr
from ..compiler.pair import Pair, int8_nodes
from ..compiler.replay import Replay
from .assign_precision import MIXED, PASSES, Assignment
from .measured_costs import measured_costs
from .precision_cut import PrecisionCosts

LEAST_SQNR = 10.0  # dB; the noise of one op is then a tenth of the output's power
HEAD_START = 1.1  # fp32 must be faster by this factor
LEAST_GAIN = 0.02, 0.2  # of the time of all these ops, and in milliseconds: less is not worth a change


def keep_fp32(
    gm: fx.GraphModule,
    exact: Twin,
    assignment: Assignment,
    backend: Backend,
    sample: Sequence[Batch],
    leaves: Callable[[Mapping[str, str]], float],
) -> dict[str, str]:
    """The reason for each int8 op of a frozen graph that should stay in fp32, by the name of its first node.

    What an override speaks of stays as it is, and layers that were given fewer than 8 bits are not judged by accuracy.
    ``leaves`` tells how near [dB] the output is on the first batch with other ops in fp32, given as they are returned.
    """
    free = [u for u in assignment.int8_units if assignment.config.key_of(u.root) is None]
    alone = _alone(gm, exact, assignment, free, sample)

    def worst(count: int) -> dict[str, str]:
        return {name: _ruinous(decibels) for decibels, name in alone[:count]}

    ruined = worst(_how_many(alone, lambda count: leaves(_with_behind(assignment, worst(count)))))
    latencies = backend.latencies(Frozen(gm, *sample[0], frozenset(assignment.reasons)))
    if latencies is None:
        return _with_behind(assignment, ruined)
    return ruined | _slower(measured_costs(assignment, latencies), assignment, free, ruined)


def nearness(gm: fx.GraphModule, exact: Twin, sample: Sequence[Batch]) -> float:
    """SQNR [dB] of a frozen graph's output on the first batch."""
    return sqnr(*(Stepper(module, sample[:1]).finish() for module in (exact.module, gm)))


def _alone(
    gm: fx.GraphModule, exact: Twin, assignment: Assignment, free: Sequence[Unit], sample: Sequence[Batch]
) -> list[tuple[float, str]]:
    """What each op leaves [dB] alone in int8, the worst first; nothing where the model as a whole is good enough."""
    judged = [u for u in free if u.rule.output is not Output.SHARED and assignment.config_of(u).weight_bits == 8]
    if not judged or nearness(gm, exact, sample) >= LEAST_SQNR:
        return []
    pair = Pair(exact, Replay(exact.module, sample[0]), Replay(gm, sample[0]), int8_nodes(assignment))
    return sorted((sqnr([pair.fp32.output], [pair.only(unit)]), unit.root.name) for unit in judged)


def _how_many(alone: Sequence[tuple[float, str]], leaves: Callable[[int], float]) -> int:
    """How many of the worst must be fp32. All that are ruinous alone; where no number is enough, no others."""
    few = sum(decibels < LEAST_SQNR for decibels, _ in alone)
    counts = range(few, len(alone) + 1)
    if not alone or (few and leaves(few) >= LEAST_SQNR):
        return few
    place = bisect_left(counts, True, lo=1, key=lambda count: leaves(count) >= LEAST_SQNR)
    return counts[place] if place < len(counts) else few


def _ruinous(decibels: float) -> str:
    whole = "" if decibels < LEAST_SQNR else " together with that in other ops"
    return f"int8 here would ruin the output{whole}: this op alone leaves {decibels:.1f} dB"


def _with_behind(assignment: Assignment, fp32: Mapping[str, str]) -> dict[str, str]:
    """``fp32``, and the ops that pass integers on and would have none."""
    found = dict(fp32)
    for unit in assignment.int8_units:
        sources = {p.maker for p in assignment.passed if unit.root in p.readers}
        if unit.rule.output is Output.SHARED and any(s is not None and s.name in found for s in sources):
            found[unit.root.name] = PASSES
    return found


def _slower(
    costs: PrecisionCosts, assignment: Assignment, free: Sequence[Unit], ruined: dict[str, str]
) -> dict[str, str]:
    """Those that a minimum cut has in fp32, besides ``ruined``."""
    units = {u.root.name: u for u in assignment.int8_units}
    # What is ruined is not fused, either: the op before it stays free.
    needs = [(a, b) for a, b in costs.needs if b not in ruined or units[a].rule.output is Output.SHARED]
    costs = replace(costs, needs=needs)
    handicapped = replace(costs, fp32={op: HEAD_START * ms for op, ms in costs.fp32.items()})
    movable = {u.root.name for u in free} | {n for n, u in units.items() if u.rule.output is Output.SHARED}
    fixed = {op: op not in ruined for op in units if op in ruined or op not in movable}
    everything = frozenset(units)
    chosen, least = handicapped.cheapest(fixed=fixed), everything
    if ruined:
        weighted = {op: True for op, unit in units.items() if unit.rule.weighted}
        least = handicapped.cheapest(fixed=weighted | fixed)
    share, milliseconds = LEAST_GAIN
    if costs.total(least) - costs.total(chosen) < max(share * costs.total(everything), milliseconds):
        chosen = least
    reasons: dict[str, str] = {}
    for group in _neighbours(costs, everything - chosen - ruined.keys()):
        lost = costs.total(chosen | group) - costs.total(chosen)
        for op in group:
            if units[op].rule.output is Output.SHARED:
                reasons[op] = PASSES
            elif 0 < lost < float("inf"):
                ops = f"this and {len(group) - 1} ops around it" if len(group) > 1 else "this op"
                reasons[op] = f"measured: {ops} would take {lost:.2g} ms longer in int8, with the borders"
            else:
                reasons[op] = MIXED
    return reasons


def _neighbours(costs: PrecisionCosts, ops: frozenset[object]) -> list[frozenset[str]]:
    graph: nx.Graph[object] = nx.Graph()
    graph.add_nodes_from(ops)
    for value in costs.crossings:
        graph.add_edges_from((value.maker, r) for r in value.readers if value.maker in ops and r in ops)
    return [frozenset(map(str, group)) for group in nx.connected_components(graph)]
