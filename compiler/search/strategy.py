"""Which mixes a search tries, so that it needs few evaluations.

First, bisection finds the fastest mix of the front that is within the budget. The front ignores interactions between
ops, so this mix is then improved: its weighted fp32 ops return to int8 in groups, first halves and at last single ops,
ordered by time gained per noise added. A mix whose int8 ops include those of a mix that failed is not tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from .space import Mix, Space

Evaluate = Callable[[Sequence[Mix]], Sequence[bool]]
TOLERANCE = 0.005  # of the predicted time: ops that cost less go back to int8, too, as that needs less memory
PATIENCE = 8  # failed evaluations in a row, after which no more improvements are tried


class Strategy:
    """A search of one space.

    Args:
        space: the mixes to search.
        evaluate: says for each of several mixes whether it is within the budget; may raise to end the search.
        width: how many mixes it gets at once.
    """

    def __init__(self, space: Space, evaluate: Evaluate, width: int = 1) -> None:
        self.space, self._evaluate, self.width = space, evaluate, width
        self._failed: list[Mix] = []

    def run(self) -> None:
        """Try mixes until none is left that promises to be faster."""
        place = self._bisect()
        if place:
            self._improve(place)

    def evaluate(self, mixes: Sequence[Mix]) -> Sequence[bool]:
        """Try ``mixes``, and remember those that failed."""
        results = self._evaluate(mixes)
        self._failed += [m for m, within in zip(mixes, results, strict=True) if not within]
        return results

    def _bisect(self) -> int | None:
        """The place in the front of the fastest mix within the budget; None if there is none."""
        front = [point.int8 for point in self.space.front]
        if self.evaluate(front[:1])[0]:
            return 0
        low, high = 0, len(front)
        while high - low > 1:
            count = min(self.width, high - low - 1)
            places = [low + (high - low) * (i + 1) // (count + 1) for i in range(count)]
            within = dict(zip(places, self.evaluate([front[p] for p in places]), strict=True))
            high = min((p for p in places if within[p]), default=high)
            low = max((p for p in places if p < high and not within[p]), default=low)
        return high if high < len(front) else None

    def _improve(self, place: int) -> None:
        before, point = self.space.front[place - 1], self.space.front[place]
        weight = (point.cost - before.cost) / (before.penalty - point.penalty)
        current, waiting = point.int8, self._ranked(point.int8, weight)
        size, failures = max(1, len(waiting) // 2), 0
        while waiting and size:
            groups = [waiting[i : i + size] for i in range(0, len(waiting), size)]
            while groups and failures < PATIENCE:
                batch, mixes = list[list[str]](), list[Mix]()
                while groups and len(batch) < self.width:
                    group = groups.pop(0)
                    candidate = self.space.with_int8(current, group, weight)
                    if self._promising(candidate, current) and candidate not in mixes:
                        batch.append(group)
                        mixes.append(candidate)
                if not batch:
                    continue
                results = self.evaluate(mixes)
                if not any(results):
                    failures += len(results)
                    continue
                failures, best = 0, results.index(True)
                current = mixes[best]
                waiting = [op for op in waiting if op not in current]
                # The other groups were tried with another mix than the current one.
                groups = [g for i, g in enumerate(batch) if results[i] and i != best] + groups
            size //= 2

    def _ranked(self, current: Mix, weight: float) -> list[str]:
        """The weighted fp32 ops that are not slower in int8, ordered by noise added per time saved."""
        costs, noise = self.space.costs, dict[str, float]()
        now = costs.total(current)
        for op in self.space.weighted:
            gain = now - costs.total(self.space.with_int8(current, [op], weight))
            if op not in current and gain > -TOLERANCE * now:
                noise[op] = self.space.penalties[op] / max(gain, TOLERANCE * now)
        return sorted(noise, key=noise.__getitem__)

    def _promising(self, candidate: Mix, current: Mix) -> bool:
        costs = self.space.costs
        rounding = self.space.penalties.keys()
        if any(failed & rounding <= candidate for failed in self._failed) or not math.isfinite(costs.total(candidate)):
            return False
        return candidate != current and costs.total(candidate) < (1 + TOLERANCE) * costs.total(current)
