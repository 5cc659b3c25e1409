"""Statistics of the channels of values in a float graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ...compiler.execution.batches import run_batches
from ...compiler.execution.sample import Batch
from ...compiler.execution.visitor import Visitor


@dataclass(frozen=True)
class ChannelStatistics:
    """Least and largest value per channel: ``(channels,)``; and the number of values of each channel."""

    low: Tensor
    high: Tensor
    count: int

    @property
    def largest(self) -> Tensor:
        """Largest magnitude per channel."""
        return torch.maximum(self.high, -self.low)


def channel_statistics(
    gm: fx.GraphModule, axes: Mapping[fx.Node, int], sample: Sequence[Batch]
) -> dict[fx.Node, ChannelStatistics]:
    """Statistics of the values in ``axes`` over all of ``sample``; ``axes`` gives the axis of the channels.

    Raises:
        CalibrationError: forward() fails on a batch.
    """
    seen: dict[fx.Node, ChannelStatistics] = {}

    def see(node: fx.Node, value: Any) -> Any:
        if node in axes and value.numel():
            others = [d for d in range(value.dim()) if d != axes[node] % value.dim()]
            low, high = (value.amin(others), value.amax(others)) if others else (value, value)
            before, count = seen.get(node), value.numel() // low.numel()
            if before is not None:
                low, high = torch.minimum(low, before.low), torch.maximum(high, before.high)
                count += before.count
            seen[node] = ChannelStatistics(low, high, count)
        return value

    run_batches(Visitor(gm, see).call, sample, "channel statistics")
    return seen
