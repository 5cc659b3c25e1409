"""Steps that run again and again, each round on the next part of a tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from .steps import AnyStep, Loop, Step


def loop_of(step: AnyStep) -> Loop | None:
    """The loop that a step belongs to."""
    return step.loop if isinstance(step, Step) else None


def by_round(steps: Sequence[AnyStep]) -> Iterator[tuple[AnyStep, int]]:
    """The steps as they run, each with the round of its loop."""
    for loop, group in groupby(steps, key=loop_of):
        body = list(group)
        for number in range(loop.rounds if loop is not None else 1):
            yield from ((step, number) for step in body)


def spans(steps: Sequence[AnyStep]) -> Iterator[tuple[int, int]]:
    """The first step of each loop, and the one after its last."""
    place = 0
    for loop, group in groupby(steps, key=loop_of):
        size = len(list(group))
        if loop is not None:
            yield place, place + size
        place += size
