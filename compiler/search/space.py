"""The int8/fp32 mixes that a search chooses from, and what is known of them before any is tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...backends.base.op import Output
from ...backends.registry import DEFAULT
from ...passes.analysis.assignment import INPUT_IS_FP32
from ...passes.analysis.latency_costs import latency_costs
from ...passes.analysis.precision_cut import Point, PrecisionCosts
from ..core.errors import ConfigError
from ..diagnosis.sensitivity import Sensitivity, freeze_all, measure_sensitivity
from ..runtime.compiled import Compiled
from ..runtime.quantized_module import QuantizedModule
from ..workflows.precision_mix import with_fp32_ops
from ..workflows.stages import CalibratedModel
from ..workflows.static import freeze, lower
from .result import Prediction

Mix = frozenset[str]  # an int8/fp32 mix: the names of the ops that are int8

NEEDS_LATENCIES = "A search needs latencies, and backend {!r} measures none. " + f"Use {DEFAULT!r}."
LOWEST = -60.0  # dB
SLOWER = "search: not faster in int8 on this CPU, conversions included"
FOR_ACCURACY = "search: for accuracy"
AROUND = f"{FOR_ACCURACY}, together with the ops around it: between them, int8 would save no time"


@dataclass(frozen=True)
class Space:
    """A calibrated model, and the costs of each of its int8 ops in time and accuracy.

    Attributes:
        model: the calibrated model.
        sensitivity: of its ops, by ``"sqnr"``.
        costs: in milliseconds, without the ops that are fp32 in every mix.
        penalties: the power of the noise that an op adds to the output, as a share of the power of the output.
        front: from the fastest mix to the one of least noise.
    """

    model: CalibratedModel
    sensitivity: Sensitivity
    costs: PrecisionCosts
    penalties: Mapping[str, float]
    front: Sequence[Point]

    def predicted(self, mix: Mix) -> Prediction:
        """The predicted time and noise of ``mix``."""
        point = self.costs.point(mix, self.penalties)
        return Prediction(point.cost, point.penalty)

    @property
    def weighted(self) -> list[str]:
        """The ops with weights, in order."""
        return [u.root.name for u in self.model.assignment.int8_units if u.row.weighted]

    def with_int8(self, current: Mix, ops: Sequence[str], weight: float) -> Mix:
        """``current`` with ``ops`` in int8, too; ops without weights get the precision that costs less.

        Args:
            weight: of the penalties, in milliseconds.
        """
        fixed = {op: op in current or op in ops for op in self.weighted} | dict.fromkeys((*current, *ops), True)
        return self.costs.cheapest(self.penalties, weight, fixed)

    def reasons(self, mix: Mix) -> dict[str, str]:
        """Why each op is fp32 in ``mix``."""
        alone = {row.key: row.only for row in self.sensitivity.rows}
        now = self.costs.total(mix)
        reasons: dict[str, str] = {}
        for unit in self.model.assignment.int8_units:
            name = unit.root.name
            if name in mix:
                continue
            if unit.row.output is Output.SHARED:
                reasons[name] = INPUT_IS_FP32
            elif name not in self.front[0].int8:
                reasons[name] = SLOWER
            else:
                why = FOR_ACCURACY if self.costs.total(mix | {name}) < now else AROUND
                reasons[name] = f"{why}; with only this op in int8, the output has {alone[name]:.1f} dB"
        return reasons

    def compiled(self, mix: Mix) -> QuantizedModule:
        """The model with the ops of ``mix`` in int8."""
        return compile_mix(self.model, self.reasons(mix))


def compile_mix(model: CalibratedModel, fp32: Mapping[str, str]) -> QuantizedModule:
    """A calibrated model, lowered, with more ops in fp32: the reason for each by its name."""
    return QuantizedModule(Compiled.of(lower(freeze(with_fp32_ops(model, fp32))))).eval()


def search_space(model: CalibratedModel, known: Sensitivity | None) -> Space:
    """The mixes of a calibrated model.

    Args:
        known: its sensitivity by ``"sqnr"``, if it was measured before.

    Raises:
        ConfigError: the backend measures no latencies.
    """
    frozen = freeze_all(model)
    latencies = model.options.backend.latencies(frozen.program)
    if latencies is None:
        raise ConfigError(NEEDS_LATENCIES.format(model.options.backend.name))
    sensitivity = known or measure_sensitivity(frozen, frozen.sample, "sqnr")
    costs = latency_costs(frozen.assignment, latencies)
    penalties = _penalties(sensitivity)
    return Space(model, sensitivity, costs, penalties, costs.front(penalties))


def _penalties(sensitivity: Sensitivity) -> dict[str, float]:
    """The mean of the noise that an op adds to none and to all others: two of the terms of its Shapley value."""
    whole = _noise(sensitivity.int8)
    return {row.key: (_noise(row.only) + max(0.0, whole - _noise(row.but))) / 2 for row in sensitivity.rows}


def _noise(decibels: float) -> float:
    """The power of noise as a share of the power of the signal."""
    return 10 ** (-max(LOWEST, decibels) / 10)
