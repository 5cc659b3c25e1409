"""Between which steps all threads must wait for each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .memory import Memory, written
from .steps import FillStep, Step
from .storage import Storage


class Waits:
    """Finds whether each step needs what the steps since the last wait wrote, or overwrites what they read.

    Steps that write one storage write different parts of it: parts of a join, phases, the halo.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._start()

    def _start(self) -> None:
        self._reads: set[Storage] = set()
        self._writes: set[Storage] = set()

    def segment(self, stretches: Iterable[tuple[Sequence[Step | FillStep], int]]) -> list[bool]:
        """Whether all threads wait before each run of the steps of a segment, before which they have come together."""
        self._start()
        waits: list[bool] = []
        for body, rounds in stretches:
            before = None
            for number in range(rounds):
                found = [self._waits(step) for step in body]
                now = set(self._reads), set(self._writes)
                if before == now:  # so that all further rounds are like this one
                    waits += found * (rounds - number)
                    break
                waits += found
                before = now
        return waits

    def _waits(self, step: Step | FillStep) -> bool:
        reads, writes, overlap = self._reads, self._writes, self._memory.overlap
        own = {v.storage.root for v in step.reads} if isinstance(step, Step) else set()
        target = written(step)
        assert target is not None
        wait = bool(own & writes) or any(overlap(target, s) for s in reads | (writes - {target}))
        wait = wait or any(overlap(a, b) for a in own for b in writes)
        if wait:
            self._start()
        self._reads |= own
        self._writes.add(target)
        return wait
