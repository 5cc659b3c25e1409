"""Steps that run again and again, each round on the next part of a tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from .steps import AnyStep, Loop, Step, TorchStep


def loop_of(step: AnyStep) -> Loop | None:
    """The loop that a step belongs to."""
    return step.loop if isinstance(step, Step) else None


def stretches(steps: Sequence[AnyStep]) -> Iterator[tuple[list[AnyStep], int]]:
    """Neighbouring steps with how often they run: those of a loop, native ones outside of loops, or one of torch."""
    for _, group in groupby(steps, key=lambda step: step if isinstance(step, TorchStep) else loop_of(step)):
        body = list(group)
        loop = loop_of(body[0])
        yield body, loop.rounds if loop is not None else 1


def by_round(steps: Sequence[AnyStep]) -> Iterator[tuple[AnyStep, int]]:
    """The steps as they run, each with the round of its loop."""
    for body, rounds in stretches(steps):
        for number in range(rounds):
            yield from ((step, number) for step in body)


def spans(steps: Sequence[AnyStep]) -> Iterator[tuple[int, int]]:
    """The first step of each loop, and the one after its last."""
    place = 0
    for body, _ in stretches(steps):
        if loop_of(body[0]) is not None:
            yield place, place + len(body)
        place += len(body)
