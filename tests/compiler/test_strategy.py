"""Which mixes a search tries: on made-up costs, with budgets that are known to the test alone."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import pytest

from fxquant.compiler.search.space import Mix, Space
from fxquant.compiler.search.strategy import PATIENCE, Strategy
from fxquant.passes.analysis.precision_cut import OUTSIDE, Crossing, Point, PrecisionCosts


@dataclass
class Chain:
    """Weighted ops in a row, each faster in int8, with borders between those of different precision."""

    penalties: dict[str, float]
    costs: PrecisionCosts = field(init=False)
    front: list[Point] = field(init=False)

    def __post_init__(self) -> None:
        ops = list(self.penalties)
        around = [OUTSIDE, *ops, OUTSIDE]
        borders = [Crossing(a, frozenset([b]), 0.05, 0.05) for a, b in itertools.pairwise(around)]
        self.costs = PrecisionCosts(dict.fromkeys(ops, 0.5), dict.fromkeys(ops, 1.0), borders)
        self.front = self.costs.front(self.penalties)

    @property
    def weighted(self) -> list[str]:
        return list(self.penalties)

    with_int8 = Space.with_int8

    def search(self, within: Callable[[Mix], bool], width: int = 1) -> tuple[Mix | None, int]:
        """The fastest mix found within the budget, and the number of evaluations."""
        tried: dict[Mix, bool] = {}

        def judge(mixes: Sequence[Mix]) -> list[bool]:
            assert len(mixes) <= width
            tried.update((mix, within(mix)) for mix in mixes)
            return [tried[mix] for mix in mixes]

        Strategy(cast(Space, self), judge, width).run()
        passed = [mix for mix, ok in tried.items() if ok]
        return min(passed, key=self.costs.total, default=None), len(tried)


def chain(count: int, fragile: Sequence[str], seed: int) -> Chain:
    """``count`` ops of unlike small penalties, and those that are ``fragile`` with large ones."""
    draw = random.Random(seed)
    return Chain(
        {f"op{i}": draw.uniform(1, 3) if f"op{i}" in fragile else draw.uniform(0.001, 0.05) for i in range(count)}
    )


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("seed", range(10))
def test_fragile_ops_are_found_with_few_evaluations(seed: int, width: int) -> None:
    fragile = {f"op{i}" for i in random.Random(seed).sample(range(30), 3)}
    made = chain(30, sorted(fragile), seed)
    found, evaluations = made.search(fragile.isdisjoint, width)
    assert found == frozenset(made.penalties) - fragile
    greedy = 1 + len(made.penalties) + len(fragile)  # all int8, each op on its own, then one by one
    assert width * evaluations <= greedy / 3 or width > 1
    assert evaluations <= greedy / 2


def test_all_int8_is_tried_first_and_nothing_else_if_it_does() -> None:
    made = chain(20, [], 0)
    assert made.search(lambda mix: True) == (frozenset(made.penalties), 1)


def test_where_nothing_is_within_the_budget_the_search_ends_soon() -> None:
    made = chain(30, ["op3"], 0)
    found, evaluations = made.search(lambda mix: False)
    assert found is None and evaluations <= 7  # the front by bisection


@pytest.mark.parametrize("seed", range(20))
def test_ops_whose_penalty_misleads_are_repaired(seed: int) -> None:
    """One op looks harmless and is not, others look fragile and are not: repair brings most of those back."""
    draw = random.Random(seed)
    culprit = f"op{draw.randrange(20)}"
    made = chain(20, [f"op{i}" for i in draw.sample(range(20), 4)], seed)
    made.penalties[culprit] = 0.02
    made = Chain(made.penalties)
    found, evaluations = made.search(lambda mix: culprit not in mix)
    assert found is not None and culprit not in found
    best = made.costs.total(frozenset(made.penalties) - {culprit})
    assert made.costs.total(found) <= 1.15 * best
    assert evaluations <= 6 + 2 * PATIENCE


def test_no_mix_is_tried_twice_nor_one_of_which_a_part_failed() -> None:
    made, tried = chain(12, ["op2", "op7"], 3), list[Mix]()

    def judge(mix: Mix) -> bool:
        tried.append(mix)
        return {"op2", "op7"}.isdisjoint(mix)

    made.search(judge)
    assert len(set(tried)) == len(tried)
    repairs = tried[len(made.front).bit_length() + 1 :]
    for number, mix in enumerate(repairs):
        failed = [m for m in tried[: tried.index(mix)] if not {"op2", "op7"}.isdisjoint(m)]
        assert not any(m <= mix for m in failed), number
