"""The table of a program: a row for each run of a kernel, and the arguments of all rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .driver import STEP

Space = Literal["arena", "constant", "given", "fixed"]
Words = np.ndarray  # int64


@dataclass(frozen=True)
class Address:
    """A place in the arena, in the constants, in a tensor that is given with a call, or at a fixed address.

    Attributes:
        index: the number of the given tensor.
        offset: bytes.
        drift: bytes that it moves on in each round of a loop.
    """

    space: Space
    offset: int
    index: int = 0
    drift: int = 0


@dataclass(frozen=True)
class NativeStep:
    """A call of a kernel.

    Attributes:
        kernel: its name.
        numbers: what it reads at run time.
    """

    kernel: str
    arguments: tuple[Address, ...]
    numbers: tuple[int, ...]
    items: int


@dataclass(frozen=True)
class Stretch:
    """Neighbouring steps that run ``rounds`` times, one after the other in each round."""

    steps: tuple[NativeStep, ...]
    rounds: int


class Tables:
    """What the driver reads, but for the addresses of tensors that lie elsewhere in each call.

    Args:
        stretches: in order.
        waits: before which runs all threads must have done the runs before.
        kernels: the address of each kernel.
        constants: the address of the constants.

    Attributes:
        arguments: of all runs; addresses in the arena, and in given tensors, are offsets.
        inside: which arguments lie in the arena.
        given, tensors: which arguments lie in tensors of the call, and the number of the tensor of each.
    """

    def __init__(
        self, stretches: Sequence[Stretch], waits: Sequence[bool], kernels: dict[str, int], constants: int
    ) -> None:
        steps = [step for stretch in stretches for step in stretch.steps]
        places: dict[tuple[int, ...], int] = {}
        for step in steps:
            places.setdefault(step.numbers, sum(map(len, places)))
        self._numbers = _words(n for numbers in places for n in numbers)
        numbers_at = self._numbers.ctypes.data
        words = [w for s in steps for w in (Address("fixed", numbers_at + 8 * places[s.numbers]), *s.arguments)]
        sizes = _words(1 + len(s.arguments) for s in steps)
        runs, which, rounds = _expanded(stretches, sizes)
        base = {"arena": 0, "constant": constants, "given": 0, "fixed": 0}
        start = _words(base[w.space] + w.offset for w in words)
        drift = _words(w.drift for w in words)
        tensor = _words(w.index if w.space == "given" else -1 for w in words)
        in_arena = np.array([w.space == "arena" for w in words], dtype=bool)
        self.arguments = start[which] + drift[which] * rounds
        self.inside = np.flatnonzero(in_arena[which])
        self.given = np.flatnonzero(tensor[which] >= 0)
        self.tensors = tensor[which][self.given]
        # A kernel gets the address of its first argument; the word before it leads to its numbers.
        self._places = np.cumsum(sizes[runs]) - sizes[runs] + 1
        self._rows = _words(kernels[s.kernel] for s in steps)[runs], _words(s.items for s in steps)[runs], waits

    def table(self, arguments: int) -> Words:
        """The rows, for arguments at this address: int64 [runs, words of a step]."""
        kernel, items, waits = self._rows
        columns = {"kernel": kernel, "arguments": arguments + 8 * self._places, "items": items, "wait": waits}
        table = np.zeros((len(self._places), len(STEP)), dtype=np.int64)
        for place, name in enumerate(STEP):
            table[:, place] = columns[name]
        return table


def _expanded(stretches: Sequence[Stretch], sizes: Words) -> tuple[Words, Words, Words]:
    """The step of each run; the number, among those of all steps, and the round of each word of the runs.

    Args:
        sizes: words of each step.
    """
    found: tuple[list[Words], ...] = ([_words(())], [_words(())], [_words(())])
    first, begin = 0, 0
    for stretch in stretches:
        last = first + len(stretch.steps)
        end = begin + int(sizes[first:last].sum())
        parts = np.arange(first, last), np.arange(begin, end)
        for kept, part in zip(found, parts, strict=False):
            kept.append(np.tile(part, stretch.rounds))
        found[2].append(np.repeat(np.arange(stretch.rounds), end - begin))
        first, begin = last, end
    runs, words, rounds = map(np.concatenate, found)
    return runs, words, rounds


def _words(numbers: object) -> Words:
    return np.array(list(numbers), dtype=np.int64)  # type: ignore[call-overload]
