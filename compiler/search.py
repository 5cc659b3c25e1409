"""The fastest mix of int8 and fp32 within an accuracy budget."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from ..backends.base import Target
from ..backends.x86 import X86Backend
from .batches import Batch
from .capture import Leaf, check_model, copied
from .config import QuantConfig
from .errors import BudgetWarning, ConfigError, SearchError, check_positive
from .evaluation import Evaluate, Evaluation
from .latency import interleaved_medians
from .module import QuantizedModule
from .pipeline import CALIBRATION_BATCHES, calibrated
from .search_result import FrontPoint, SearchResult, Trial
from .search_space import Mix, Space, search_space
from .strategy import Strategy
from .trials import Trials
from .work import Options
from .workers import Workers

FINALISTS = 3  # modules that are kept, and measured against each other at the end
PARALLEL = 3  # mixes that are evaluated at once through an executor


def search(
    model: nn.Module,
    calibration: Iterable[Any],
    evaluate: Evaluate,
    max_drop: float,
    *,
    config: QuantConfig | None = None,
    target: Target | None = None,
    leaf_modules: Sequence[Leaf] = (),
    calibration_batches: int = CALIBRATION_BATCHES,
    strict: bool = False,
    seconds: float | None = None,
    seed: int = 0,
    executor: Executor | None = None,
    resume: str | os.PathLike[str] | None = None,
) -> SearchResult:
    """Find the fastest mix of int8 and fp32 ops on this CPU whose accuracy is within the budget.

    Sensitivity and latency of every op are measured without ``evaluate``; from them the Pareto front of mixes is
    predicted (:mod:`fxquant.passes.precision_cut`). ``evaluate`` is then called on a few really lowered mixes
    (:mod:`fxquant.compiler.strategy`). What is returned was evaluated and is within the budget, and was not slower than
    the float model when measured beside it; where no mix is both, it runs in fp32.

    Args:
        model, calibration, config, target, leaf_modules, calibration_batches: as of :func:`fxquant.compile` with
            ``scheme="static"``.
        evaluate: takes a module that is called like the model, and returns a number, of which more is better
            (a loss: return its negative). It is first called twice on the float model.
        max_drop: how much less than for the float model that number may be, in its own units.
        strict: raise where no int8 mix is within the budget, instead of warning.
        seconds: time budget; behind it no evaluation begins, and the best so far is returned.
        seed: of Python's, NumPy's and torch's random numbers in each call of ``evaluate``.
        executor: evaluates up to 3 mixes at once in other processes: any :class:`concurrent.futures.Executor` whose
            workers can import the model, also ``dask.distributed.Client(...).get_executor()``. Latency is measured in
            this process, and what is returned is evaluated here once more.
        resume: a file that keeps every evaluation: a search that was stopped goes on from there.

    Raises:
        SearchError: ``evaluate`` raises, gives no finite number for the float model, or not the same twice; or with
            ``strict``, see there.
        ConfigError, ModelError, CaptureError, CalibrationError: as ``compile`` does.

    Warns:
        BudgetWarning: no int8 mix is within the budget, or none that is is faster than the float model.
    """
    check_model(model)
    options = Options(X86Backend(target), QuantConfig() if config is None else config, leaf_modules)
    return find_mix(
        model, calibration, evaluate, max_drop, options, calibration_batches,
        strict=strict, seconds=seconds, seed=seed, executor=executor, resume=resume,
    )  # fmt: skip


def find_mix(
    model: nn.Module,
    calibration: Iterable[Any],
    evaluate: Evaluate,
    max_drop: float,
    options: Options,
    calibration_batches: int,
    *,
    strict: bool,
    seconds: float | None = None,
    seed: int = 0,
    executor: Executor | None = None,
    resume: str | os.PathLike[str] | None = None,
) -> SearchResult:
    """:func:`search` with the options of a compilation."""
    deadline = time.monotonic() + _checked(max_drop, seconds)
    check_positive("calibration_batches", calibration_batches)
    evaluation = Evaluation(evaluate, seed)
    reference = copied(model).eval()
    with torch.autocast("cpu", enabled=False):
        work = calibrated(model, calibration, options, calibration_batches)
        trials = Trials(resume, work)
        fp32 = evaluation.twice(reference)
        trials.begin(fp32)
        space = search_space(work, trials.sensitivity)
        trials.sensitivity = space.sensitivity
        trials.save()
        workers = Workers(executor, reference, work, evaluation) if executor is not None else None
        with tqdm(desc="search", unit="mix", disable=None, leave=False) as progress:
            judge = _Judge(space, reference, evaluation, trials, fp32 - max_drop, deadline, workers, progress)
            try:
                Strategy(space, judge, 1 if workers is None else PARALLEL).run()
            except _OutOfTime:
                pass
            return _Outcome(judge, fp32, strict).result()


def _checked(max_drop: object, seconds: object) -> float:
    """The seconds there are, after a check of both."""
    for name, value in (("max_drop", max_drop), ("seconds", math.inf if seconds is None else seconds)):
        number = isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
        if not number or (name == "seconds" and not value > 0) or (name == "max_drop" and math.isinf(value)):  # type: ignore[operator,arg-type]
            wanted = "a finite number, in the units of evaluate" if name == "max_drop" else "a positive number"
            raise ConfigError(f"{name} is {value!r}; it must be {wanted}.")
    return math.inf if seconds is None else float(seconds)  # type: ignore[arg-type]


class _OutOfTime(Exception):
    """No time is left for another evaluation."""


class _Judge:
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
        self.finalists: list[tuple[Mix, QuantizedModule]] = []

    def __call__(self, mixes: Sequence[Mix]) -> list[bool]:
        if self.workers is not None:
            self._evaluate_elsewhere(mixes)
        return [self.judge(mix).within for mix in mixes]

    def judge(self, mix: Mix, last: bool = False) -> Trial:
        """Evaluate one mix and measure it, if that was not done before; the ``last`` one has all the time it needs."""
        if mix in self.trials:
            return self.trials[mix]
        name, module, value = self.name(mix), None, self.kept.values.get(self.name(mix))
        if value is None:
            if not last:
                self._check_time()
            module = self.space.compiled(mix)
            value = self.evaluation(module, f"a mix with {len(name)} ops in fp32")
            self.kept.add(name, value)
        trial = Trial(name, value, self.is_within(value))
        if trial.within:
            module = module or self.space.compiled(mix)
            ours, theirs = self.measured([module, self.reference], rounds=15)
            trial = replace(trial, milliseconds=ours, ratio=ours / theirs)
        self.trials[mix] = trial
        self.progress.update()
        if trial.within and module is not None:
            everyone = sorted([*self.finalists, (mix, module)], key=lambda f: self.trials[f[0]].ratio or math.inf)
            self.finalists = everyone[:FINALISTS]
        return trial

    def name(self, mix: Mix) -> frozenset[str]:
        """The ops of the space that ``mix`` has in fp32."""
        return frozenset(self.space.costs.fp32) - mix

    def is_within(self, value: float) -> bool:
        return value >= self.floor or math.isclose(value, self.floor, rel_tol=1e-9, abs_tol=1e-12)

    def measured(self, modules: Sequence[nn.Module], rounds: int) -> list[float]:
        """Median milliseconds of each on the first calibration batch, in turns."""
        args, kwargs = self._example
        with torch.no_grad():
            return interleaved_medians([lambda m=m: m(*args, **kwargs) for m in modules], rounds, seconds=4.0)  # type: ignore[misc]

    @property
    def _example(self) -> Batch:
        return self.space.work.sample[0]

    def _check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise _OutOfTime

    def _evaluate_elsewhere(self, mixes: Sequence[Mix]) -> None:
        assert self.workers is not None
        new = [mix for mix in mixes if self.name(mix) not in self.kept.values]
        if new:
            self._check_time()
        for mix, value in zip(new, self.workers.values([self.space.reasons(m) for m in new]), strict=True):
            self.kept.add(self.name(mix), value)


class _Outcome:
    """What becomes of a search that is over."""

    def __init__(self, judge: _Judge, fp32: float, strict: bool) -> None:
        self.judge, self.fp32, self.strict = judge, fp32, strict

    def result(self) -> SearchResult:
        """The result, after a last comparison.

        Raises:
            SearchError: no int8 mix is within the budget, and the search is strict.
        """
        judge, int8_was_within = self.judge, bool(self.judge.finalists)
        found = self._fastest()
        if found is None:
            reason = self._none_is_faster() if int8_was_within else self._none_is_within()
            if self.strict and not int8_was_within:
                raise SearchError(reason)
            warnings.warn(BudgetWarning(reason), stacklevel=4)
            found = self._without_int8()
        trial, module = found
        summary = self._summary(trial)
        compiled = module.with_remark(summary)
        front = tuple(
            FrontPoint(judge.name(p.int8), p.cost, p.penalty, judge.kept.values.get(judge.name(p.int8)))
            for p in judge.space.front
        )
        return SearchResult(
            compiled,
            trial,
            front,
            tuple(judge.trials.values()),
            judge.space.sensitivity,
            self.fp32,
            judge.floor,
            summary,
        )

    def _fastest(self) -> tuple[Trial, QuantizedModule] | None:
        """The fastest finalist that is not slower than the float model, all measured in turns."""
        judge = self.judge
        if not judge.finalists:
            return None
        *times, theirs = judge.measured([*(m for _, m in judge.finalists), judge.reference], rounds=30)
        for ms, (mix, module) in sorted(zip(times, judge.finalists, strict=True), key=lambda pair: pair[0]):
            trial = judge.trials[mix] = replace(judge.trials[mix], milliseconds=ms, ratio=ms / theirs)
            if ms > theirs or not mix:
                return None
            if judge.workers is not None:  # another machine may round otherwise
                value = judge.evaluation(module, "the fastest mix")
                trial = judge.trials[mix] = replace(trial, value=value, within=judge.is_within(value))
            if trial.within:
                return trial, module
        return None

    def _without_int8(self) -> tuple[Trial, QuantizedModule]:
        """The model in fp32: lowered where that is not slower, else as it is. Below the budget: what is nearest to it."""
        judge = self.judge
        trial = judge.judge(frozenset(), last=True)
        module = judge.space.compiled(frozenset())
        ours, theirs = judge.measured([module, judge.reference], rounds=30)
        if not trial.within or ours > theirs:
            trial, module = (
                Trial(trial.fp32, self.fp32, judge.is_within(self.fp32), theirs, 1.0),
                module.running(judge.reference),
            )
        best = max(judge.trials, key=lambda mix: judge.trials[mix].value)
        if not trial.within and judge.trials[best].value > trial.value:
            return judge.trials[best], judge.space.compiled(best)
        return trial, module

    def _none_is_within(self) -> str:
        values = [t.value for mix, t in self.judge.trials.items() if mix]
        best = f", of which the best gives {max(values):.6g}" if values else ""
        return (
            f"No int8 mix keeps evaluate at {self.judge.floor:.6g} or more (fp32 gives {self.fp32:.6g}): "
            f"{len(values)} were tried{best}. Allow a larger max_drop, give more calibration data, or train with scheme='qat'."
        )

    def _none_is_faster(self) -> str:
        return "Int8 mixes are within the budget, but none was measured to be faster than the float model on this CPU."

    def _summary(self, trial: Trial) -> str:
        judge = self.judge
        ops = len(judge.space.costs.fp32)
        speed = "" if trial.ratio is None else f"; {trial.milliseconds:.3g} ms, {trial.ratio:.2f} of fp32's time"
        budget = "within" if trial.within else "below"
        return (
            f"search: evaluate {trial.value:.6g}, fp32 {self.fp32:.6g}, {budget} the budget of {judge.floor:.6g}{speed}; "
            f"{ops - len(trial.fp32)} of {ops} ops in int8; {len(judge.kept.values)} mixes evaluated"
        )
