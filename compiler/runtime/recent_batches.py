"""The last batches that a model was trained on."""

from __future__ import annotations

from collections import deque

from ..execution.sample import Batch, copy_batch, items_of

KEPT = 512  # items
LEAST = 128  # items: statistics of fewer are worse than running ones


class RecentBatches:
    """Copies of the last batches, as far as their items are needed."""

    def __init__(self) -> None:
        self._batches: deque[Batch] = deque()
        self._items: deque[int] = deque()

    def add(self, batch: Batch) -> None:
        """Keep a copy of ``batch``, and drop what is not needed any more."""
        self._batches.append(copy_batch(batch))
        self._items.append(items_of(batch))
        while sum(self._items) - self._items[0] >= KEPT:
            self._batches.popleft()
            self._items.popleft()

    def clear(self) -> None:
        self._batches.clear()
        self._items.clear()

    def taken(self, most: int) -> list[Batch]:
        """The last batches, of at most ``most`` items if two or more; none if too few were kept. All are dropped."""
        taken: list[Batch] = []
        items, enough = 0, sum(self._items) >= LEAST
        for batch, count in zip(reversed(self._batches), reversed(self._items), strict=True):
            if taken and items + count > most:
                break
            taken.append(batch)
            items += count
        self.clear()
        return taken[::-1] if enough else []
