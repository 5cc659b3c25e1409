"""What a few batches tell of the channels of values, before anything is quantized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..compiler.batches import Batch, run_batch
from ..compiler.values import bind_inputs


@dataclass(frozen=True)
class ChannelStatistics:
    """Least and largest value per channel, and how many values each channel had."""

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
    """Statistics of the values in ``axes``, along the axis given there, over all of ``sample``.

    Raises:
        CalibrationError: the forward fails on a batch.
    """
    watcher = _Watcher(gm, axes)
    for number, batch in enumerate(sample):
        run_batch(lambda *args, **kwargs: watcher.run(*bind_inputs(gm, args, kwargs)), batch, number)
    return watcher.seen


class _Watcher(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule, axes: Mapping[fx.Node, int]) -> None:
        super().__init__(gm)
        self.axes = axes
        self.seen: dict[fx.Node, ChannelStatistics] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self.axes and result.numel():
            others = [d for d in range(result.dim()) if d != self.axes[n] % result.dim()]
            low, high = (result.amin(others), result.amax(others)) if others else (result, result)
            before = self.seen.get(n)
            count = result.numel() // low.numel()
            if before is not None:
                low, high = torch.minimum(low, before.low), torch.maximum(high, before.high)
                count += before.count
            self.seen[n] = ChannelStatistics(low, high, count)
        return result
