"""Timing of functions against each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

from ..core.interrupts import checkpoint


def interleaved_medians(
    runs: Sequence[Callable[[], object]], rounds: int = 30, seconds: float = 5.0, warm_up: int = 3
) -> list[float]:
    """Median milliseconds of each of ``runs``, called in turns so that noise of the machine hits all of them.

    Args:
        rounds: how often each is timed at most.
        seconds: no new round begins after this time.
        warm_up: untimed calls of each before that.
    """
    for run in runs:
        for _ in range(warm_up):
            run()
    times: list[list[float]] = [[] for _ in runs]
    start = time.perf_counter()
    for _ in range(rounds):
        for values, run in zip(times, runs, strict=True):
            checkpoint()
            begin = time.perf_counter()
            run()
            values.append((time.perf_counter() - begin) * 1e3)
        if time.perf_counter() - start > seconds:
            break
    return [statistics.median(values) for values in times]
