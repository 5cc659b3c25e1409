"""The fastest int8/fp32 mix within an accuracy budget."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from numbers import Real
from typing import Any

from torch import nn

from ...backends.base.backend import Target
from ..capture.capture import Leaf
from ..capture.copies import copy_model
from ..capture.model_checks import checked_model
from ..core.config import QuantConfig
from ..core.entry_point import entry_point
from ..core.errors import BudgetWarning, ConfigError, SearchError
from ..core.messages import check_positive, warn
from ..core.progress import log, progress_bar, verbosity
from ..workflows.options import CALIBRATION_BATCHES, Options
from ..workflows.static import prepare_and_calibrate
from .evaluation import Evaluate, Evaluation
from .evaluator import Evaluator, OutOfTime
from .outcome import NOTHING_FASTER, choose, search_result, shortfall
from .result import SearchResult
from .space import NEEDS_LATENCIES, search_space
from .strategy import Strategy
from .trials import Trials
from .workers import Workers

PARALLEL = 3  # mixes that are evaluated at once through an executor


@entry_point
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
    verbose: bool | None = None,
) -> SearchResult:
    """Find the fastest int8/fp32 mix on this CPU whose accuracy is within the budget.

    Sensitivity and latency of every op are measured without ``evaluate``; from them the Pareto front of mixes is
    predicted (:mod:`fxquant.passes.analysis.precision_cut`). Then ``evaluate`` is called on a few lowered mixes
    (:mod:`fxquant.compiler.search.strategy`). The result is within the budget by a real evaluation, and was measured
    to be no slower than the float model. If no mix is both, the result runs in fp32.

    Args:
        model, calibration, config, target, leaf_modules, calibration_batches: as of :func:`fxquant.compile` with
            ``scheme="static"``. Ops that an override quantizes may be left in fp32.
        evaluate: takes a module that is called like the model, and returns a number; more is better (of a loss, return
            the negative). It is called twice on the float model first.
        max_drop: how far that number may fall from that of the float model, in its own units.
        strict: raise an error, instead of a warning, if no int8 mix is within the budget.
        seconds: time limit; after that no mix is tried, and the best so far is returned.
        seed: of the random numbers of Python, NumPy and torch in each call of ``evaluate``.
        executor: evaluates up to 3 mixes at once in other processes: any :class:`concurrent.futures.Executor` whose
            workers can import the model, also ``dask.distributed.Client(...).get_executor()``. Latency is measured in
            this process, and the result is evaluated here once more.
        resume: a file that keeps every evaluation, so that a search that was stopped can go on.
        verbose: as of :func:`fxquant.compile`.

    Raises:
        SearchError: ``evaluate`` raises, or returns no finite number or two different numbers for the float model; or
            see ``strict``.
        ConfigError, ModelError, CaptureError, CalibrationError: as of :func:`fxquant.compile`.

    Warns:
        BudgetWarning: no int8 mix is within the budget, or none that is within it is faster than the float model.
    """
    model = checked_model(model)
    options = Options.of(config, target=target, leaf_modules=leaf_modules)
    with verbosity(verbose):
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
    deadline = time.monotonic() + _checked_seconds(max_drop, seconds)
    if not options.backend.measures_latency:
        raise ConfigError(NEEDS_LATENCIES.format(options.backend.name))
    check_positive("calibration_batches", calibration_batches)
    options = replace(options, config=replace(options.config, deterministic=False))  # to search is to measure
    evaluation = Evaluation(evaluate, seed)
    reference = copy_model(model).eval()
    calibrated = prepare_and_calibrate(model, calibration, options, calibration_batches)
    trials = Trials(resume, calibrated, seed)
    float_value = evaluation.twice(model)
    trials.begin(float_value)
    space = search_space(calibrated, trials.sensitivity)
    trials.sensitivity = space.sensitivity
    trials.save()
    log.info("search: %d mixes on the predicted front", len(space.front))
    workers = Workers(executor, reference, calibrated, evaluation) if executor is not None else None
    with progress_bar("search", "mix") as bar:
        floor = float_value - max_drop
        evaluator = Evaluator(space, reference, evaluation, trials, floor, deadline, workers, bar)
        with contextlib.suppress(OutOfTime):
            Strategy(space, evaluator, 1 if workers is None else PARALLEL).run()
        chosen, module = choose(evaluator, float_value)
    missed = shortfall(evaluator, chosen, float_value)
    if missed and strict and not evaluator.int8_within and missed != NOTHING_FASTER:
        raise SearchError(missed)
    if missed:
        warn(BudgetWarning(missed))
    return search_result(evaluator, chosen, module, float_value)


def _checked_seconds(max_drop: Any, seconds: Any) -> float:
    """The time budget, after a check of both arguments."""
    if not math.isfinite(_number(max_drop)):
        raise ConfigError(f"max_drop is {max_drop!r}; it must be a finite number, in the units of evaluate.")
    if seconds is None:
        return math.inf
    if not _number(seconds) > 0:
        raise ConfigError(f"seconds is {seconds!r}; it must be a positive number.")
    return float(seconds)


def _number(value: Any) -> float:
    """``value`` if it is a real number, also one of NumPy; else NaN."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    with contextlib.suppress(OverflowError):
        return float(value)
    return math.nan
