"""Ops that stay in fp32 because int8 ruins the model's output there, or is slower. Needs no labels.

Accuracy: if the int8 model as a whole leaves less than :data:`LEAST_SQNR` at the output, every op that does so alone
stays in fp32, and then as many of the next worst as it takes. Speed: ops that are measured to be slower in int8 stay in
fp32 (:mod:`fxquant.passes.analysis.slower_ops`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import replace

from ...backends.ops.units import Unit
from ...passes.analysis.latency_costs import latency_costs
from ...passes.analysis.ruinous_ops import (
    LEAST_SQNR,
    output_sqnr,
    ruinous_reason,
    sqnr_of_each,
    with_pass_through_ops,
)
from ...passes.analysis.slower_ops import slower_ops
from ..core.errors import TimingWarning
from ..core.messages import warn
from ..core.progress import log
from .precision_mix import with_fp32_ops
from .stages import CalibratedModel, FrozenModel
from .static import adjust, adjust_biases, freeze, round_values


def freeze_with_mixed_precision(model: CalibratedModel) -> FrozenModel:
    """From a calibrated graph to a frozen one, with ops in fp32 if ``QuantConfig.mixed_precision`` is on.

    Ops that an override names stay as they are. Layers of fewer than 8 bits are not judged by accuracy.
    """
    if not model.options.config.mixed_precision:
        return freeze(model)
    return _Choice(model).frozen()


class _Choice:
    def __init__(self, model: CalibratedModel) -> None:
        self.model = model
        self.int8 = self._round({})
        assignment = self.int8.assignment
        self.free = [u for u in assignment.int8_units if assignment.config.key_of(u.root) is None]
        self._tried: dict[frozenset[str], float] = {}

    def frozen(self) -> FrozenModel:
        """The frozen model of the chosen mix."""
        is_ruined = self._sqnr(self.int8) < LEAST_SQNR and self._try({}) < LEAST_SQNR
        ruinous = self._ruinous() if is_ruined else {}
        fp32, slower = with_pass_through_ops(self.int8.assignment, ruinous), self._slower(ruinous)
        if not is_ruined:
            fp32 = slower
        elif slower and self._try(ruinous | slower) >= min(self._try(fp32), LEAST_SQNR):
            fp32 = ruinous | slower
        still_ruined = is_ruined and self._try(fp32) < LEAST_SQNR
        log.info("mixed precision: %d ops stay in fp32 (%d for accuracy)", len(fp32), len(ruinous))
        frozen = adjust(self._round(fp32) if fp32 else self.int8)
        if still_ruined and (left := self._sqnr(frozen)) < LEAST_SQNR:
            return replace(frozen, remark=f"int8 ruins the output: {left:.1f} dB on the first batch")
        return frozen

    def _round(self, fp32: Mapping[str, str]) -> FrozenModel:
        return round_values(with_fp32_ops(self.model, fp32))

    def _sqnr(self, frozen: FrozenModel) -> float:
        return output_sqnr(frozen.gm, frozen.exact, frozen.sample[0])

    def _try(self, fp32: Mapping[str, str]) -> float:
        """SQNR [dB] of the output with ``fp32`` in fp32 and biases corrected."""
        ops = frozenset(fp32)
        if ops not in self._tried:
            self._tried[ops] = self._sqnr(adjust_biases(self._round(dict.fromkeys(ops, "tried"))))
        return self._tried[ops]

    def _ruinous(self) -> dict[str, str]:
        """Reasons for all ops that ruin the output alone, and for as many of the next worst as it takes.

        If no number of them is enough, there are no others.
        """
        model = self.int8
        alone = sqnr_of_each(model.gm, model.exact, model.assignment, self.free, model.sample[0])

        def worst(count: int) -> dict[str, str]:
            return {name: ruinous_reason(left) for left, name in alone[:count]}

        def is_enough(count: int) -> bool:
            return self._try(with_pass_through_ops(model.assignment, worst(count))) >= LEAST_SQNR

        few = sum(left < LEAST_SQNR for left, _ in alone)
        if few and is_enough(few):
            return worst(few)
        counts = range(few + 1, len(alone) + 1)
        place = bisect_left(counts, True, key=is_enough)
        return worst(counts[place] if place < len(counts) else few)

    def _slower(self, ruinous: Mapping[str, str]) -> dict[str, str]:
        """Reasons for ops that are slower in int8, besides those that are ``ruinous``."""
        backend, assignment = self.model.options.backend, self.int8.assignment
        latencies, measured = backend.latencies(self.int8.program), not self.model.options.config.deterministic
        if latencies is None:
            return {}
        free: list[Unit] = self.free
        slower = slower_ops(latency_costs(assignment, latencies), assignment, free, ruinous, measured)
        left = [u for u in assignment.int8_layers if u.root.name in slower]
        if measured and len(left) > len(assignment.int8_layers) / 2:
            warn(
                TimingWarning(
                    f"By measured times, {len(left)} of {len(assignment.int8_layers)} layers are faster in fp32 on "
                    "this machine. If other work ran beside the compilation, compile again on a quiet machine; or "
                    "leave QuantConfig.deterministic on, which measures no such times."
                )
            )
        return slower
