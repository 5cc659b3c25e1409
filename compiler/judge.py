"""Evaluating and measuring the mixes that a search tries."""

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

from .batches import copied
from .evaluation import Evaluation, reaches
from .latency import interleaved_medians
from .module import QuantizedModule
from .search_result import Trial
from .search_space import Mix, Space
from .trials import Trials
from .workers import Workers

FINALISTS = 3  # modules that are kept, and measured against each other at the end


class OutOfTime(Exception):
    """No time is left for another evaluation."""


class Judge:
    """Evaluates mixes, measures those within the budget, and keeps the fastest of them."""

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
        self._evaluated: set[Mix] = set()  # in this process
        self.late = False  # whether a mix was not tried for want of time
        self.finalists: list[tuple[Mix, QuantizedModule]] = []  # fastest first, with int8 ops in each

    def __call__(self, mixes: Sequence[Mix]) -> list[bool]:
        if self.workers is not None:
            self._evaluate_elsewhere(mixes)
        return [self.judge(mix).within for mix in mixes]

    def judge(self, mix: Mix, module: QuantizedModule | None = None) -> Trial:
        """Evaluate one mix and measure it, if that was not done before; ``module`` is it, if it is compiled already.

        Raises:
            OutOfTime: it is not evaluated, and there is no time left for that.
        """
        if mix in self.trials:
            return self.trials[mix]
        fp32, value = self.fp32_of(mix), self.kept.values.get(self.fp32_of(mix))
        if value is None:
            self._check_time()
            module = module or self._compiled(mix)
            value = self.evaluation(module, f"a mix with {len(fp32)} ops in fp32")
            self.kept.add(fp32, value)
            self._evaluated.add(mix)
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
        """Evaluate ``module``, which is ``mix``, if that was done elsewhere: another machine may round otherwise."""
        if mix not in self._evaluated:
            value = self.evaluation(module, "the fastest mix")
            self.kept.add(self.fp32_of(mix), value)
            self.trials[mix] = replace(self.trials[mix], value=value, within=self.is_within(value))

    @cached_property
    def lowered(self) -> QuantizedModule:
        """The model lowered with no op in int8."""
        return self.space.compiled(frozenset())

    def fp32_of(self, mix: Mix) -> frozenset[str]:
        """The ops of the space that ``mix`` has in fp32."""
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
            args, kwargs = copied(self.space.work.sample[0])  # a float model may change what it is given
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
