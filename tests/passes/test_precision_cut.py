"""The minimum cut against all choices, one by one."""

import itertools
import math
import random

import pytest

from fxquant.passes.analysis.precision_cut import OUTSIDE, Crossing, PrecisionCosts


def random_costs(seed: int) -> tuple[PrecisionCosts, dict[int, float]]:
    """Up to eight ops in a random acyclic graph, some bound to a precision or to another op; and their penalties."""
    draw = random.Random(seed)
    ops = list(range(draw.randint(1, 8)))
    bound = {op: draw.choice(["int8", "fp32", "", "", "", "", ""]) for op in ops}
    int8 = {op: math.inf if bound[op] == "fp32" else draw.uniform(0, 2) for op in ops}
    fp32 = {op: math.inf if bound[op] == "int8" else draw.uniform(0, 3) for op in ops}
    crossings, needs = [], []
    for maker in (OUTSIDE, *ops):
        later: list[int | None] = [op for op in ops if maker is OUTSIDE or op > maker] + [OUTSIDE]
        readers = frozenset(draw.sample(later, draw.randint(1, len(later))))
        crossings.append(Crossing(maker, readers, draw.choice([0.0, draw.uniform(0, 1)]), draw.uniform(0, 1)))
        needs += [(op, maker) for op in readers if op is not OUTSIDE and bound[op] == "" and draw.random() < 0.15]
    return PrecisionCosts(int8, fp32, crossings, needs), {op: draw.choice([0.0, draw.uniform(0, 5)]) for op in ops}


def all_choices(costs: PrecisionCosts) -> list[frozenset[int]]:
    choices = (frozenset(c) for n in range(len(costs.int8) + 1) for c in itertools.combinations(costs.int8, n))
    return [c for c in choices if math.isfinite(costs.total(c))]


def penalty(choice: frozenset[int], penalties: dict[int, float]) -> float:
    return sum(penalties[op] for op in choice)


@pytest.mark.parametrize("block", range(10))
def test_the_cut_is_the_best_of_all_choices(block: int) -> None:
    compared = 0
    for seed in range(40 * block, 40 * (block + 1)):
        costs, penalties = random_costs(seed)
        if not all_choices(costs):
            continue
        for weight in (0.0, 0.1, 1.0, 10.0):
            found = costs.cheapest(penalties, weight)
            best = min(costs.total(c) + weight * penalty(c, penalties) for c in all_choices(costs))
            assert costs.total(found) + weight * penalty(found, penalties) == pytest.approx(best, abs=1e-6)
            compared += 1
    assert compared > 80


def test_what_is_fixed_stays() -> None:
    for seed in range(60):
        costs, _ = random_costs(seed)
        open_ops = [op for op in costs.int8 if math.isfinite(costs.int8[op] + costs.fp32[op])]
        bound = {op for pair in costs.needs for op in pair}
        fixed = {op: bool(op % 2) for op in open_ops if op not in bound}
        allowed = [c for c in all_choices(costs) if all((op in c) == value for op, value in fixed.items())]
        if allowed:
            found = costs.cheapest(fixed=fixed)
            assert costs.total(found) == pytest.approx(min(map(costs.total, allowed)), abs=1e-6)
            assert all((op in found) == value for op, value in fixed.items())


def test_the_front_is_the_convex_hull_of_all_choices() -> None:
    corners = 0
    for seed in range(1000, 1200):
        costs, penalties = random_costs(seed)
        costs = PrecisionCosts(  # all fp32, where a front ends, must be possible
            costs.int8, {op: ms if math.isfinite(ms) else 1.0 for op, ms in costs.fp32.items()}, costs.crossings
        )
        front = costs.front(penalties)
        corners += len(front)
        for cheaper, dearer in itertools.pairwise(front):
            assert cheaper.cost < dearer.cost and cheaper.penalty > dearer.penalty
        for point in front:
            assert point.cost == costs.total(point.int8)
        for a, b in itertools.pairwise(front):  # nothing lies below the line between neighbors
            slope = (b.cost - a.cost) / (a.penalty - b.penalty)
            best = min(costs.total(c) + slope * penalty(c, penalties) for c in all_choices(costs))
            assert a.cost + slope * a.penalty == pytest.approx(best, abs=1e-6)
        least = min(map(costs.total, all_choices(costs)))
        assert front[0].cost == pytest.approx(least, abs=1e-6)
    assert corners > 300


def test_a_value_is_converted_once_for_all_its_readers() -> None:
    ops = dict.fromkeys("abc", 0.0)
    shared = PrecisionCosts(ops, dict.fromkeys("abc", 1.0), [Crossing(OUTSIDE, frozenset("abc"), 2.0, 0.0)])
    assert shared.total(set("abc")) == 2.0 and shared.cheapest() == frozenset("abc")
    apart = PrecisionCosts(ops, dict.fromkeys("abc", 1.0), [Crossing(OUTSIDE, frozenset(op), 2.0, 0.0) for op in "abc"])
    assert apart.total(set("abc")) == 6.0 and apart.cheapest() == frozenset()


def test_what_passes_integers_through_is_int8_only_behind_int8() -> None:
    costs = PrecisionCosts({"conv": 5.0, "pool": 0.0}, {"conv": 1.0, "pool": 3.0}, needs=[("pool", "conv")])
    assert costs.cheapest() == frozenset()
    assert costs.total({"pool"}) == math.inf
    alone = PrecisionCosts({"pool": 0.0}, {"pool": 3.0}, needs=[("pool", OUTSIDE)])
    assert alone.cheapest() == frozenset()
