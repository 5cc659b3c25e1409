"""Timing of functions against each other."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from ..core.interrupts import checkpoint

LARGEST_SPREAD = 2.0  # median over minimum


@dataclass(frozen=True)
class Timing:
    """Times of functions that were called in turns.

    Attributes:
        medians: milliseconds of each.
        spread: the mean ratio of their medians to their minima.
        competing: other processes wanted the cores that they need.
    """

    medians: list[float]
    spread: float
    competing: bool

    @property
    def calm(self) -> bool:
        """Whether nothing seems to have disturbed the measurement."""
        return not self.competing and self.spread <= LARGEST_SPREAD


def interleaved_times(
    runs: Sequence[Callable[[], object]], rounds: int = 30, seconds: float = 5.0, warm_up: int = 3
) -> Timing:
    """Times of ``runs``, called in turns so that noise of the machine hits all of them.

    Args:
        rounds: how often each is timed at most.
        seconds: no new round begins after this time.
        warm_up: untimed calls of each before that.
    """
    competing = _cores_are_wanted()
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
    medians = [statistics.median(values) for values in times]
    spread = statistics.mean(median / max(min(values), 1e-6) for median, values in zip(medians, times, strict=True))
    return Timing(medians, spread, competing or _cores_are_wanted())


def interleaved_medians(
    runs: Sequence[Callable[[], object]], rounds: int = 30, seconds: float = 5.0, warm_up: int = 3
) -> list[float]:
    """Median milliseconds of each of ``runs``; arguments as of :func:`interleaved_times`."""
    return interleaved_times(runs, rounds, seconds, warm_up).medians


def _cores_are_wanted() -> bool:
    """Whether other processes leave fewer cores than torch uses. Known on Linux only."""
    return all(_others_run() for _ in range(3))  # a short job of the system is no load


def _others_run() -> bool:
    with suppress(OSError, ValueError, IndexError):
        # Idle threads of torch spin for a while.
        states = [
            (task / "stat").read_text().rpartition(")")[2].split()[0] for task in Path("/proc/self/task").iterdir()
        ]
        running = int(Path("/proc/loadavg").read_text().split()[3].split("/")[0]) - states.count("R")
        return running > max((os.cpu_count() or 1) - torch.get_num_threads(), 0)
    return False
