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
    """Least and largest value and mean square per channel."""

    low: Tensor
    high: Tensor
    square: Tensor

    @property
    def largest(self) -> Tensor:
        """Largest magnitude per channel."""
        return torch.maximum(self.high, -self.low)


def channel_statistics(
    gm: fx.GraphModule, axes: Mapping[fx.Node, int], sample: Sequence[Batch]
) -> dict[fx.Node, ChannelStatistics]:
    """Statistics of the values in ``axes``, along the axis given there, over all of ``sample``."""
    watcher = _Watcher(gm, axes)
    for number, batch in enumerate(sample):
        run_batch(lambda *args, **kwargs: watcher.run(*bind_inputs(gm, args, kwargs)), batch, number)
    return {
        n: ChannelStatistics(
            torch.stack([p[0] for p in parts]).amin(0),
            torch.stack([p[1] for p in parts]).amax(0),
            torch.stack([p[2] for p in parts]).mean(0),
        )
        for n, parts in watcher.parts.items()
    }


class _Watcher(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule, axes: Mapping[fx.Node, int]) -> None:
        super().__init__(gm)
        self.axes = axes
        self.parts: dict[fx.Node, list[tuple[Tensor, Tensor, Tensor]]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self.axes and result.numel():
            others = [d for d in range(result.dim()) if d != self.axes[n] % result.dim()]
            low, high = (result.amin(others), result.amax(others)) if others else (result, result)
            square = result.square().mean(others) if others else result.square()
            self.parts.setdefault(n, []).append((low, high, square))
        return result
