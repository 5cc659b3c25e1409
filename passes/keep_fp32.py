"""Ops that stay in fp32 because int8 ruins the model's output there, or is slower: what needs no data with labels.

Both are measured. Accuracy: where the int8 model as a whole brings the output below :data:`LEAST_SQNR`, each op that
alone does is left out, and then as many of the next worst as it takes. Speed: the ops are split between int8 and fp32
by a minimum cut (:mod:`.precision_cut`) over measured times, with a head start for int8, so that noise decides nothing.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import networkx as nx
from torch import fx

from ..backends.base import Backend, Frozen, Output
from ..backends.units import Unit
from ..compiler.batches import Batch
from ..compiler.lockstep import Stepper, Twin, decibels, sqnr, squares
from ..compiler.pair import Pair, int8_nodes
from ..compiler.replay import Replay
from .assign_precision import MIXED, PASSES, Assignment
from .measured_costs import measured_costs
from .precision_cut import PrecisionCosts

LEAST_SQNR = 10.0  # dB; the noise is then a tenth of the output's power
HEAD_START = 1.1  # fp32 must be faster by this factor
LEAST_GAIN = 0.02, 0.2  # of the time of all these ops, and in milliseconds: less is not worth a change


@dataclass(frozen=True)
class Kept:
    """What should stay in fp32.

    Attributes:
        reasons: of each such op, by the name of its first node.
        is_ruined: whether int8 ruins the output all the same.
    """

    reasons: dict[str, str]
    is_ruined: bool = False


def keep_fp32(
    gm: fx.GraphModule,
    exact: Twin,
    assignment: Assignment,
    backend: Backend,
    sample: Sequence[Batch],
    trial: Callable[[frozenset[str]], float],
) -> Kept:
    """The int8 ops of a frozen graph that should stay in fp32.

    What an override speaks of stays as it is, and layers that were given fewer than 8 bits are not judged by accuracy.

    Args:
        gm, exact: the frozen graph, and that in fp32.
        assignment, backend, sample: of the model; ``sample`` is in order, and its first batch is what is judged by.
        trial: the :func:`nearness` of the model with other ops in fp32, named as in :attr:`Kept.reasons`, once its
            biases are corrected.
    """
    free = [u for u in assignment.int8_units if assignment.config.key_of(u.root) is None]
    is_ruined = nearness(gm, exact, sample) < LEAST_SQNR and trial(frozenset()) < LEAST_SQNR
    ruinous = _ruinous(_alone(gm, exact, assignment, free, sample), assignment, trial) if is_ruined else {}
    kept = _with_behind(assignment, ruinous)
    latencies = backend.latencies(Frozen(gm, *sample[0], frozenset(assignment.reasons)))
    slower = _slower(measured_costs(assignment, latencies), assignment, free, ruinous) if latencies is not None else {}
    if not is_ruined:
        return Kept(slower)
    faster = ruinous | slower
    if slower and trial(frozenset(faster)) >= min(trial(frozenset(kept)), LEAST_SQNR):
        kept = faster
    return Kept(kept, trial(frozenset(kept)) < LEAST_SQNR)


def nearness(gm: fx.GraphModule, exact: Twin, sample: Sequence[Batch]) -> float:
    """SQNR [dB] of a frozen graph's output on the first batch; infinite where fp32 gives zeros, which tell nothing."""
    (expected,), (ours,) = (Stepper(module, sample[:1]).finish() for module in (exact.module, gm))
    signal, noise = (float(power.sum()) for power in squares(expected, ours))
    return decibels(signal, noise) if signal != 0 else math.inf


def _alone(
    gm: fx.GraphModule, exact: Twin, assignment: Assignment, free: Sequence[Unit], sample: Sequence[Batch]
) -> list[tuple[float, str]]:
    """What each op that is judged leaves [dB] alone in int8, the worst first."""
    pair = Pair(exact, Replay(exact.module, sample[0]), Replay(gm, sample[0]), int8_nodes(assignment))
    judged = [u for u in free if u.rule.output is not Output.SHARED and assignment.config_of(u).weight_bits == 8]
    return sorted((sqnr([pair.fp32.output], [pair.only(unit)]), unit.root.name) for unit in judged)


def _ruinous(
    alone: Sequence[tuple[float, str]], assignment: Assignment, trial: Callable[[frozenset[str]], float]
) -> dict[str, str]:
    """The reasons for all ops that are ruinous ``alone``, and for as many of the next worst as it takes.

    Where no number of them is enough, there are no others.
    """

    def worst(count: int) -> dict[str, str]:
        return {name: _reason(left) for left, name in alone[:count]}

    def is_enough(count: int) -> bool:
        return trial(frozenset(_with_behind(assignment, worst(count)))) >= LEAST_SQNR

    few = sum(left < LEAST_SQNR for left, _ in alone)
    if few and is_enough(few):
        return worst(few)
    counts = range(few + 1, len(alone) + 1)
    place = bisect_left(counts, True, key=is_enough)
    return worst(counts[place] if place < len(counts) else few)


def _reason(left: float) -> str:
    whole = "" if left < LEAST_SQNR else " together with that in other ops"
    return f"int8 here would ruin the output{whole}: this op alone leaves {left:.1f} dB"


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
