"""The mixes of int8 and fp32 that a search chooses among, and what is known of them before any is tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..backends.base import Frozen, Output
from ..passes.assign_precision import PASSES
from ..passes.measured_costs import measured_costs
from ..passes.precision_cut import Point, PrecisionCosts
from .mixes import mix
from .module import QuantizedModule, lowered_module
from .pipeline import quantize
from .search_result import Prediction
from .sensitivity import Sensitivity, frozen_pair, measure_sensitivity
from .work import Work

Mix = frozenset[str]  # the ops in int8, by the names of their first nodes

LOWEST = -60.0  # dB
SLOWER = "search: not faster in int8 on this CPU, with its borders"
FOR_ACCURACY = "search: for accuracy"
AROUND = f"{FOR_ACCURACY}, together with the ops around it: in int8 between them it would save no time"


@dataclass(frozen=True)
class Space:
    """A calibrated model, and of each of its int8 ops what it costs in time and accuracy.

    Attributes:
        sensitivity: by ``"sqnr"``.
        costs: in milliseconds, without the ops that are fp32 in every mix.
        penalties: the power of the noise that an op adds to the output, as a share of the output's.
        front: from the fastest mix to that of the least noise.
    """

    work: Work
    sensitivity: Sensitivity
    costs: PrecisionCosts
    penalties: Mapping[str, float]
    front: Sequence[Point]

    def predicted(self, mix: Mix) -> Prediction:
        """What is expected of ``mix``."""
        point = self.costs.point(mix, self.penalties)
        return Prediction(point.cost, point.penalty)

    @property
    def weighted(self) -> list[str]:
        """The ops with weights, in order."""
        assert self.work.assignment is not None
        return [u.root.name for u in self.work.assignment.int8_units if u.rule.weighted]

    def with_back(self, current: Mix, ops: Sequence[str], weight: float) -> Mix:
        """``current`` with ``ops`` in int8, too; what has no weight goes to the side where it costs less.

        ``weight`` is that of the penalties against milliseconds.
        """
        fixed = {op: op in current or op in ops for op in self.weighted} | dict.fromkeys((*current, *ops), True)
        return self.costs.cheapest(self.penalties, weight, fixed)

    def reasons(self, chosen: Mix) -> dict[str, str]:
        """Why each op outside of ``chosen`` is in fp32."""
        assert self.work.assignment is not None
        alone = {row.key: row.only for row in self.sensitivity.rows}
        now = self.costs.total(chosen)
        reasons: dict[str, str] = {}
        for unit in self.work.assignment.int8_units:
            name = unit.root.name
            if name in chosen:
                continue
            if unit.rule.output is Output.SHARED:
                reasons[name] = PASSES
            elif name not in self.front[0].int8:
                reasons[name] = SLOWER
            elif self.costs.total(chosen | {name}) < now:
                reasons[name] = f"{FOR_ACCURACY}; this op alone in int8 leaves {alone[name]:.1f} dB"
            else:
                reasons[name] = f"{AROUND}; this op alone in int8 leaves {alone[name]:.1f} dB"
        return reasons

    def compiled(self, chosen: Mix) -> QuantizedModule:
        """The model with the ops ``chosen`` in int8."""
        return compile_mix(self.work, self.reasons(chosen))


def compile_mix(work: Work, fp32: Mapping[str, str]) -> QuantizedModule:
    """A calibrated model, lowered; ``fp32`` as of :func:`.mixes.mix`."""
    chosen = mix(work, fp32)
    quantize(chosen)
    return QuantizedModule(lowered_module(chosen)).eval()


def search_space(work: Work, known: Sensitivity | None) -> Space:
    """What a search of a calibrated model chooses from. ``known``: its sensitivity by ``"sqnr"``, if known already."""
    frozen, exact = frozen_pair(work)
    assert frozen.assignment is not None
    latencies = work.options.backend.latencies(
        Frozen(frozen.gm, *frozen.sample[0], frozenset(frozen.assignment.reasons))
    )
    assert latencies is not None
    sensitivity = known or measure_sensitivity(frozen, exact, frozen.sample, "sqnr")
    costs = measured_costs(frozen.assignment, latencies)
    penalties = _penalties(sensitivity)
    return Space(work, sensitivity, costs, penalties, costs.front(penalties))


def _penalties(sensitivity: Sensitivity) -> dict[str, float]:
    """The mean of what an op adds to the noise of none, and of all others: two of the terms of its Shapley value."""
    whole = _noise(sensitivity.int8)
    return {row.key: (_noise(row.only) + max(0.0, whole - _noise(row.but))) / 2 for row in sensitivity.rows}


def _noise(decibels: float) -> float:
    """The power of noise as a share of the signal's."""
    return 10 ** (-max(LOWEST, decibels) / 10)
