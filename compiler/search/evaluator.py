"""Evaluates and measures the mixes that a search tries."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from ..execution.sample import copy_batch
from ..execution.timing import interleaved_medians
from ..runtime.quantized_module import QuantizedModule
from .evaluation import Evaluation, reaches
from .result import Trial
from .space import Mix, Space
from .trials import Trials
from .workers import Workers

FINALISTS = 3  # modules that are kept, and measured beside each other at the end


class OutOfTime(Exception):
    """No time is left for another evaluation."""


class Evaluator:
    """Evaluates mixes, measures those within the budget, and keeps the fastest of them.

    Attributes:
        trials: every mix that was evaluated.
        finalists: the fastest mixes within the budget that have int8 ops, fastest first.
        late: a mix was not tried because the time was over.
    """

    def __init__(
        self,
        space: Space,
        reference: nn.Module,
        evaluation: Evaluation,
        trials: Trials,
        floor: float,
        deadline: float,
        workers: Workers | None,
        progress: tqdm[Any],
    ) -> None:
        self.space, self.reference, self.evaluation, self.kept = space, reference, evaluation, trials
        self.floor, self.deadline, self.workers, self.progress = floor, deadline, workers, progress
        self.trials: dict[Mix, Trial] = {}
        self._evaluated_here: set[Mix] = set()
        self.late = False
        self.finalists: list[tuple[Mix, QuantizedModule]] = []

    def __call__(self, mixes: Sequence[Mix]) -> list[bool]:
        if self.workers is not None:
            self._evaluate_elsewhere(mixes)
        return [self.evaluate(mix).within for mix in mixes]

    def evaluate(self, mix: Mix, module: QuantizedModule | None = None) -> Trial:
        """Evaluate one mix and measure it, if that was not done before.

        Args:
            module: the mix, if it is compiled already.

        Raises:
            OutOfTime: it is not evaluated, and no time is left.
        """
        if mix in self.trials:
            return self.trials[mix]
        fp32, value = self.fp32_of(mix), self.kept.values.get(self.fp32_of(mix))
        if value is None:
            self._check_time()
            module = module or self._compiled(mix)
            value = self.evaluation(module, f"a mix with {len(fp32)} ops in fp32")
            self.kept.add(fp32, value)
            self._evaluated_here.add(mix)
        trial = Trial(fp32, self.space.predicted(mix), value, self.is_within(value))
        if trial.within:
            module = module or self._compiled(mix)
            ours, theirs = self.measured([module, self.reference], rounds=15)
            trial = replace(trial, milliseconds=ours, ratio=ours / theirs)
        self.trials[mix] = trial
        self.progress.update()
        if mix and trial.within and module is not None:
            everyone = sorted([*self.finalists, (mix, module)], key=lambda f: self.trials[f[0]].ratio or math.inf)
            self.finalists = everyone[:FINALISTS]
        return trial

    def confirm(self, mix: Mix, module: QuantizedModule) -> None:
        """Evaluate ``module``, which is ``mix``, if another process did: another machine may round differently."""
        if mix not in self._evaluated_here:
            value = self.evaluation(module, "the fastest mix")
            self.kept.add(self.fp32_of(mix), value)
            self.trials[mix] = replace(self.trials[mix], value=value, within=self.is_within(value))

    @cached_property
    def lowered(self) -> QuantizedModule:
        """The model lowered with all ops in fp32."""
        return self.space.compiled(frozenset())

    def fp32_of(self, mix: Mix) -> frozenset[str]:
        """The ops that are fp32 in ``mix``."""
        return frozenset(self.space.costs.fp32) - mix

    def is_within(self, value: float) -> bool:
        return reaches(value, self.floor)

    @property
    def int8_within(self) -> bool:
        """Whether a mix with int8 ops is within the budget."""
        return any(trial.within for mix, trial in self.trials.items() if mix)

    def measured(self, modules: Sequence[nn.Module], rounds: int) -> list[float]:
        """Median milliseconds of each on the first calibration batch, in turns."""

        def run(module: nn.Module) -> Callable[[], object]:
            args, kwargs = copy_batch(self.space.model.sample[0])  # a float model may change what it is given
            return partial(module, *args, **kwargs)

        with torch.no_grad():
            return interleaved_medians([run(module) for module in modules], rounds, seconds=4.0)

    def _compiled(self, mix: Mix) -> QuantizedModule:
        return self.space.compiled(mix) if mix else self.lowered

    def _check_time(self) -> None:
        self.late = time.monotonic() > self.deadline
        if self.late:
            raise OutOfTime

    def _evaluate_elsewhere(self, mixes: Sequence[Mix]) -> None:
        assert self.workers is not None
        new = [mix for mix in mixes if self.fp32_of(mix) not in self.kept.values]
        if new:
            self._check_time()
        for mix, value in zip(new, self.workers.values([self.space.reasons(m) for m in new]), strict=True):
            self.kept.add(self.fp32_of(mix), value)
