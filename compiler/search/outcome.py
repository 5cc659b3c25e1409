"""The result of a search that is over."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace

from ..runtime.quantized_module import QuantizedModule
from .evaluator import Evaluator, OutOfTime
from .result import FrontPoint, SearchResult, Trial
from .space import FOR_ACCURACY, Mix

NOTHING_FASTER = "By measured times int8 makes no op faster here: the model runs in fp32."
NOT_FASTER = "search: no mix with int8 that is within the budget was measured to be faster"
EQUAL = 1.01  # times the fastest: a measurement cannot tell the difference


def choose(evaluator: Evaluator, float_value: float) -> tuple[Trial, QuantizedModule]:
    """The fastest module within the budget, all measured in turns; if there is none, the one nearest to the budget.

    Of those about as fast as the fastest, it is the one with most ops in int8, which is the smallest. The candidates
    are the finalists, the model lowered in fp32, and last the float model itself.

    Args:
        float_value: what evaluate returned for the float model.
    """
    everything_fp32: Mix = frozenset()
    candidates = [*evaluator.finalists, (everything_fp32, evaluator.lowered)]
    *times, theirs = evaluator.measured([*(module for _, module in candidates), evaluator.reference], rounds=100)

    def slowness(measured: tuple[float, tuple[Mix, QuantizedModule]]) -> tuple[bool, float]:
        ms, (mix, _) = measured
        equal = ms <= EQUAL * min(times)
        return not equal, -len(mix) if equal else ms

    for ms, (mix, module) in sorted(zip(times, candidates, strict=True), key=slowness):
        if ms > theirs:
            continue
        with contextlib.suppress(OutOfTime):
            evaluator.evaluate(mix, module)
        if mix not in evaluator.trials:
            continue
        evaluator.confirm(mix, module)
        trial = evaluator.trials[mix] = replace(evaluator.trials[mix], milliseconds=ms, ratio=ms / theirs)
        if trial.within:
            return trial, module
    expected = evaluator.space.predicted(everything_fp32)
    plain = Trial(
        evaluator.fp32_of(everything_fp32), expected, float_value, evaluator.is_within(float_value), theirs, 1.0
    )
    better = {mix: trial.value for mix, trial in evaluator.trials.items() if trial.value > float_value}
    if not plain.within and better:
        nearest = max(better, key=better.__getitem__)
        module = evaluator.space.compiled(nearest)
        evaluator.confirm(nearest, module)
        return evaluator.trials[nearest], module
    return plain, evaluator.lowered.running_float(evaluator.reference)


def shortfall(evaluator: Evaluator, chosen: Trial, float_value: float) -> str | None:
    """What the search did not reach: an int8 mix within the budget, or one that is faster than fp32. None: nothing."""
    ops = len(evaluator.space.costs.fp32)
    if chosen.within and ops == 0:
        return None
    # A backend may run ops in fp32 faster than torch does, so that all of them in fp32 is a mix like others.
    if chosen.within and (len(chosen.fp32) < ops or (chosen.ratio or 1) < 1):
        slower = chosen.ratio is None or chosen.ratio > 1
        return "All mixes within the budget were measured to be slower than the float model." if slower else None
    if evaluator.int8_within:
        return "Int8 mixes are within the budget, but none was measured to be faster than fp32 here: it runs in fp32."
    values = [trial.value for mix, trial in evaluator.trials.items() if mix]
    numbers = [value for value in values if not math.isnan(value)]
    if not values:
        return "No int8 mix was tried in time: give it more seconds." if evaluator.late else NOTHING_FASTER
    found = f"the best of {len(values)} has {max(numbers):.6g}" if numbers else f"it is NaN for all {len(values)}"
    allow = "a larger max_drop or more seconds" if evaluator.late else "a larger max_drop"
    return (
        f"evaluate gives {float_value:.6g} in fp32, and no int8 mix that was tried reaches {evaluator.floor:.6g}: "
        f"{found}. Allow {allow}, give more calibration data, or train with scheme='qat'."
    )


def _explained(evaluator: Evaluator, chosen: Trial, module: QuantizedModule) -> QuantizedModule:
    """``module``; if it is fp32 for its speed alone, the report no longer says that it is for accuracy."""
    if len(chosen.fp32) < len(evaluator.space.costs.fp32) or not evaluator.int8_within:
        return module
    report = module.report
    rows = (replace(r, reason=NOT_FASTER) if r.reason.startswith(FOR_ACCURACY) else r for r in report.rows)
    return module.with_report(replace(report, rows=tuple(rows)))


def search_result(evaluator: Evaluator, chosen: Trial, module: QuantizedModule, float_value: float) -> SearchResult:
    """The result of the search that has chosen ``chosen`` and its ``module``."""
    ops = len(evaluator.space.costs.fp32)
    speed = "" if chosen.ratio is None else f"; {chosen.milliseconds:.3g} ms, {chosen.ratio:.2f} of fp32's time"
    within = "within" if chosen.within else "below"
    summary = (
        f"search: evaluate {chosen.value:.6g}, fp32 {float_value:.6g}, "
        f"{within} the budget of {evaluator.floor:.6g}{speed}; {ops - len(chosen.fp32)} of {ops} ops in int8; "
        f"{len(evaluator.trials)} {'mix' if len(evaluator.trials) == 1 else 'mixes'} tried"
    )
    front = tuple(
        FrontPoint(evaluator.fp32_of(p.int8), evaluator.space.predicted(p.int8), evaluator.trials.get(p.int8))
        for p in evaluator.space.front
    )
    trials, sensitivity = tuple(evaluator.trials.values()), evaluator.space.sensitivity
    explained = _explained(evaluator, chosen, module)
    result = explained.with_report(replace(explained.report, remark=summary))
    return SearchResult(result, chosen, front, trials, sensitivity, float_value, evaluator.floor, summary)
