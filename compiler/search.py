"""The fastest mix of int8 and fp32 within an accuracy budget."""

from __future__ import annotations

import contextlib
import math
import os
import time
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from numbers import Real
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from ..backends.base import Target
from ..backends.x86 import X86Backend
from .capture import Leaf, check_model, copied
from .config import QuantConfig
from .errors import BudgetWarning, ConfigError, SearchError, check_positive
from .evaluation import Evaluate, Evaluation
from .judge import Judge, OutOfTime
from .outcome import NOTHING_FASTER, choose, search_result, shortfall
from .pipeline import CALIBRATION_BATCHES, calibrated
from .search_result import SearchResult
from .search_space import search_space
from .strategy import Strategy
from .trials import Trials
from .work import Options
from .workers import Workers

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
            ``scheme="static"``. Ops that an override quantizes may be left in fp32 all the same.
        evaluate: takes a module that is called like the model, and returns a number, of which more is better
            (a loss: return its negative). It is first called twice on the float model.
        max_drop: how much less than for the float model that number may be, in its own units.
        strict: raise where no int8 mix is within the budget, instead of warning.
        seconds: time budget; behind it no mix is tried, and the best so far is returned.
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
    if not isinstance(options.backend, X86Backend):
        raise ConfigError(f"A search needs latencies, and backend {options.backend.name!r} measures none: use 'x86'.")
    check_positive("calibration_batches", calibration_batches)
    evaluation = Evaluation(evaluate, seed)
    reference = copied(model).eval()
    with torch.autocast("cpu", enabled=False):
        work = calibrated(model, calibration, options, calibration_batches)
        trials = Trials(resume, work, seed)
        fp32 = evaluation.twice(model)
        trials.begin(fp32)
        space = search_space(work, trials.sensitivity)
        trials.sensitivity = space.sensitivity
        trials.save()
        workers = Workers(executor, reference, work, evaluation) if executor is not None else None
        with tqdm(desc="search", unit="mix", disable=None, leave=False) as progress:
            judge = Judge(space, reference, evaluation, trials, fp32 - max_drop, deadline, workers, progress)
            with contextlib.suppress(OutOfTime):
                Strategy(space, judge, 1 if workers is None else PARALLEL).run()
            chosen, module = choose(judge, fp32)
    missed = shortfall(judge, chosen, fp32)
    if missed and strict and not judge.int8_within and missed != NOTHING_FASTER:
        raise SearchError(missed)
    if missed:
        warnings.warn(BudgetWarning(missed), stacklevel=3)
    return search_result(judge, chosen, module, fp32)


def _checked(max_drop: Any, seconds: Any) -> float:
    """The seconds there are, after a check of both."""
    if not math.isfinite(_number(max_drop)):
        raise ConfigError(f"max_drop is {max_drop!r}; it must be a finite number, in the units of evaluate.")
    if seconds is None:
        return math.inf
    if not _number(seconds) > 0:
        raise ConfigError(f"seconds is {seconds!r}; it must be a positive number.")
    return float(seconds)


def _number(value: Any) -> float:
    """``value``, if it is a real number, also of NumPy; else NaN."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    with contextlib.suppress(OverflowError):
        return float(value)
    return math.nan
