"""Between which steps all threads must wait for each other."""

from __future__ import annotations

from collections.abc import Sequence, Set

from .memory import Memory, written
from .steps import FillStep, Step
from .storage import Storage


def find_waits(rows: Sequence[Step | FillStep], starts: Set[int], memory: Memory) -> list[bool]:
    """Whether each step needs what the steps since the last wait wrote, or overwrites what they read.

    Steps that write one storage write different parts of it: parts of a join, phases, the halo.

    Args:
        rows: the steps as they run; those of a loop come once for each round.
        starts: where a segment starts, before which all threads have come together.
    """
    waits = []
    reads: set[Storage] = set()
    writes: set[Storage] = set()
    for index, step in enumerate(rows):
        own = {v.storage.root for v in step.reads} if isinstance(step, Step) else set()
        target = written(step)
        assert target is not None
        conflict = bool(own & writes) or any(memory.overlap(target, s) for s in reads | (writes - {target}))
        conflict = conflict or any(memory.overlap(a, b) for a in own for b in writes)
        wait = conflict and index not in starts
        if wait or index in starts:
            reads, writes = set(), set()
        reads |= own
        writes.add(target)
        waits.append(wait)
    return waits
