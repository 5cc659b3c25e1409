"""The last batches that a model was trained on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from torch import nn

from ..execution.sample import Batch, items_of

KEPT = 512  # items
LEAST = 128  # items: statistics of fewer are worse than running ones


class RecentBatches:
    """The last batches, and the normalizations that were in training mode on one of them.

    Args:
        most: items that may be kept, in batches of which the first may have more.
    """

    def __init__(self, most: int) -> None:
        self.most = max(1, min(KEPT, most))
        self.norms: set[nn.Module] = set()
        self._batches: deque[tuple[Batch, int]] = deque()

    @property
    def items(self) -> int:
        return sum(count for _, count in self._batches)

    def add(self, batch: Batch, norms: Iterable[nn.Module]) -> None:
        """Keep ``batch``, which nobody else changes, and drop what is not needed any more."""
        self.norms.update(norms)
        self._batches.append((batch, items_of(batch)))
        while self.items - self._batches[0][1] >= self.most:
            self._batches.popleft()

    def clear(self) -> None:
        self._batches.clear()
        self.norms.clear()

    def taken(self) -> tuple[list[Batch], set[nn.Module]]:
        """All batches, or none if they are too few, and the normalizations. All are dropped."""
        enough = self.items >= min(LEAST, self.most)
        batches, norms = [batch for batch, _ in self._batches if enough], set(self.norms)
        self.clear()
        return batches, norms

    def __deepcopy__(self, memo: dict[int, Any]) -> RecentBatches:
        """The same batches, and the copies of the normalizations, which are copied before."""
        copied = RecentBatches(self.most)
        copied._batches.extend(self._batches)
        copied.norms = {memo[id(norm)] for norm in self.norms if id(norm) in memo}
        return copied
