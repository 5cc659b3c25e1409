"""What a search that is over returns."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace

from .judge import Judge, OutOfTime
from .module import QuantizedModule
from .search_result import FrontPoint, SearchResult, Trial
from .search_space import FOR_ACCURACY, Mix

NOTHING_FASTER = "By measured times int8 makes no op faster here: the model runs in fp32."
NOT_FASTER = "search: no mix with int8 that is within the budget was measured to be faster"
EQUAL = 1.01  # times the fastest: no difference that a measurement tells


def choose(judge: Judge, fp32: float) -> tuple[Trial, QuantizedModule]:
    """The fastest module within the budget, all measured in turns; where there is none, what comes nearest to it.

    Of those about as fast as the fastest it is the one with most ops in int8, which is the smallest.

    Besides the mixes that were tried it is the model lowered in fp32, and at last the float model as it is, for which
    evaluate gave ``fp32``.
    """
    everything_fp32: Mix = frozenset()
    candidates = [*judge.finalists, (everything_fp32, judge.lowered)]
    *times, theirs = judge.measured([*(module for _, module in candidates), judge.reference], rounds=100)

    def slowness(measured: tuple[float, tuple[Mix, QuantizedModule]]) -> tuple[bool, float]:
        ms, (mix, _) = measured
        equal = ms <= EQUAL * min(times)
        return not equal, -len(mix) if equal else ms

    for ms, (mix, module) in sorted(zip(times, candidates, strict=True), key=slowness):
        if ms > theirs:
            continue
        with contextlib.suppress(OutOfTime):
            judge.judge(mix, module)
        if mix not in judge.trials:
            continue
        judge.confirm(mix, module)
        trial = judge.trials[mix] = replace(judge.trials[mix], milliseconds=ms, ratio=ms / theirs)
        if trial.within:
            return trial, module
    expected = judge.space.predicted(everything_fp32)
    plain = Trial(judge.fp32_of(everything_fp32), expected, fp32, judge.is_within(fp32), theirs, 1.0)
    better = {mix: trial.value for mix, trial in judge.trials.items() if trial.value > fp32}
    if not plain.within and better:
        nearest = max(better, key=better.__getitem__)
        module = judge.space.compiled(nearest)
        judge.confirm(nearest, module)
        return judge.trials[nearest], module
    return plain, judge.lowered.running(judge.reference)


def shortfall(judge: Judge, chosen: Trial, fp32: float) -> str | None:
    """What was not reached: a mix with int8 ops within the budget, or one that is faster than fp32."""
    ops = len(judge.space.costs.fp32)
    if chosen.within and ops == 0:
        return None
    if chosen.within and len(chosen.fp32) < ops:
        slower = chosen.ratio is None or chosen.ratio > 1
        return "All mixes within the budget were measured to be slower than the float model." if slower else None
    if judge.int8_within:
        return "Int8 mixes are within the budget, but none was measured to be faster than fp32 here: it runs in fp32."
    values = [trial.value for mix, trial in judge.trials.items() if mix]
    numbers = [value for value in values if not math.isnan(value)]
    if not values:
        return "No int8 mix was tried in time: give it more seconds." if judge.late else NOTHING_FASTER
    found = f"the best of {len(values)} has {max(numbers):.6g}" if numbers else f"it is NaN for all {len(values)}"
    return (
        f"No int8 mix that was tried keeps evaluate at {judge.floor:.6g} or more, where fp32 gives {fp32:.6g}: {found}."
        f" Allow a larger max_drop, {'more seconds, ' if judge.late else ''}give more calibration data, or train with "
        "scheme='qat'."
    )


def _explained(judge: Judge, chosen: Trial, module: QuantizedModule) -> QuantizedModule:
    """``module``; where it is fp32 for its speed alone, the report says no more that it is for accuracy."""
    if len(chosen.fp32) < len(judge.space.costs.fp32) or not judge.int8_within:
        return module
    report = module.report
    rows = (replace(r, reason=NOT_FASTER) if r.reason.startswith(FOR_ACCURACY) else r for r in report.rows)
    return module.with_report(replace(report, rows=tuple(rows)))


def search_result(judge: Judge, chosen: Trial, module: QuantizedModule, fp32: float) -> SearchResult:
    """The account of the search, of which ``chosen`` and its ``module`` are the outcome."""
    ops = len(judge.space.costs.fp32)
    speed = "" if chosen.ratio is None else f"; {chosen.milliseconds:.3g} ms, {chosen.ratio:.2f} of fp32's time"
    summary = (
        f"search: evaluate {chosen.value:.6g}, fp32 {fp32:.6g}, {'within' if chosen.within else 'below'} the budget of "
        f"{judge.floor:.6g}{speed}; {ops - len(chosen.fp32)} of {ops} ops in int8; "
        f"{len(judge.trials)} {'mix' if len(judge.trials) == 1 else 'mixes'} tried"
    )
    front = tuple(
        FrontPoint(judge.fp32_of(p.int8), judge.space.predicted(p.int8), judge.trials.get(p.int8))
        for p in judge.space.front
    )
    trials, sensitivity = tuple(judge.trials.values()), judge.space.sensitivity
    explained = _explained(judge, chosen, module)
    return SearchResult(explained.with_remark(summary), chosen, front, trials, sensitivity, fp32, judge.floor, summary)
