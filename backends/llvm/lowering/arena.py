"""Places in the arena: tensors that are not needed at the same time share memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..runtime.native import ALIGNMENT


@dataclass(frozen=True)
class Need:
    """Memory that is needed from one step to another.

    Attributes:
        size: bytes.
        first: the step that writes it first.
        last: the last step that reads or writes it.
    """

    size: int
    first: int
    last: int

    @property
    def aligned(self) -> int:
        return -(-self.size // ALIGNMENT) * ALIGNMENT

    def meets(self, other: Need) -> bool:
        """Whether both are needed at some step."""
        return self.first <= other.last and other.first <= self.last


def lower_bound(needs: Sequence[Need]) -> int:
    """Bytes that are needed at the same time, at the step where most are."""
    steps = {n.first for n in needs}
    return max((sum(n.aligned for n in needs if n.first <= step <= n.last) for step in steps), default=0)


def place(needs: Sequence[Need]) -> tuple[list[int], int]:
    """The offset of each, and the size of the arena: the best of a few orders."""

    def span(i: int) -> int:
        return needs[i].last - needs[i].first + 1

    orders: tuple[Callable[[int], tuple[int, ...]], ...] = (
        lambda i: (-needs[i].aligned, needs[i].first),
        lambda i: (-needs[i].aligned * span(i), needs[i].first),
        lambda i: (needs[i].first, -needs[i].aligned),
        lambda i: (-span(i), -needs[i].aligned),
        lambda i: (-needs[i].last, -needs[i].aligned),
    )
    found = [_in_order(needs, sorted(range(len(needs)), key=order)) for order in orders]
    return min(found, key=lambda placed: placed[1])


def _in_order(needs: Sequence[Need], order: Sequence[int]) -> tuple[list[int], int]:
    """Place one after the other, each at the smallest gap that it fits in."""
    offsets = [0] * len(needs)
    placed: list[int] = []
    for index in order:
        need = needs[index]
        taken = sorted((offsets[i], offsets[i] + needs[i].aligned) for i in placed if needs[i].meets(need))
        best, least, end = -1, -1, 0
        for low, high in taken:
            gap = low - end
            if gap >= need.aligned and (best < 0 or gap < least):
                best, least = end, gap
            end = max(end, high)
        offsets[index] = end if best < 0 else best
        placed.append(index)
    return offsets, max((o + n.aligned for o, n in zip(offsets, needs, strict=True)), default=0)
