"""The part of the calibration data that is kept, for the passes that look at it more than once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..core.errors import CalibrationError
from ..core.tensors import map_tensors, tensor_bytes, tensors_of

Batch = tuple[tuple[Any, ...], dict[str, Any]]  # positional and keyword arguments of forward()

SAMPLE_BATCHES = 8
SAMPLE_BYTES = 16 * 2**20


class Sample(list[Batch]):
    """The first batches of the calibration data, copied; at most 8 batches, and about 16 MiB."""

    @property
    def full(self) -> bool:
        """Whether :meth:`keep` takes no more."""
        size = sum(tensor_bytes(t) for batch in self for t in tensors_of(batch_values(batch)))
        return len(self) >= SAMPLE_BATCHES or size >= SAMPLE_BYTES

    def fill(self, batches: Iterator[Batch]) -> None:
        """Keep batches until the sample is full or there are no more.

        Raises:
            CalibrationError: all of them are empty.
        """
        while not self.full and (batch := next(batches, None)) is not None:
            self.keep(batch)
        if not self:
            raise CalibrationError("All calibration batches are empty: there are no values to find ranges from.")

    def keep(self, batch: Batch) -> None:
        """Append a copy of ``batch``, unless the sample is full or a tensor in the batch is empty."""
        empty = any(not t.numel() for t in tensors_of(batch_values(batch)))
        if not self.full and not empty:
            self.append(copy_batch(batch))


def copy_batch(batch: Batch) -> Batch:
    """``batch`` with tensors of its own: a loader may fill one buffer again and again."""
    return tuple(_copy(v) for v in batch[0]), {k: _copy(v) for k, v in batch[1].items()}


def batch_values(batch: Batch) -> list[Any]:
    """All arguments of ``batch``."""
    return [*batch[0], *batch[1].values()]


def items_of(batch: Batch) -> int:
    """How many items a batch has, by its first tensor."""
    first = next(iter(tensors_of(batch_values(batch))), None)
    return 1 if first is None or not first.dim() else first.shape[0]


def _copy(value: Any) -> Any:
    return map_tensors(value, lambda tensor: tensor.detach().clone())
