"""The result of :func:`fxquant.debug.inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from tabulate import tabulate
from torch import Tensor

from ..numerics.histogram import Histogram


@dataclass(frozen=True)
class LayerView:
    """A layer after one step of the pipeline.

    Attributes:
        weight_low, weight_high: ``(output channels,)``, the extremes of its weight after this step.
        low, high: the extremes of its output over the batches.
        histogram: of its output.
    """

    weight_low: Tensor
    weight_high: Tensor
    low: float
    high: float
    histogram: Histogram

    @property
    def weight_ranges(self) -> Tensor:
        """``(output channels,)``: the largest magnitude of the weights."""
        return torch.maximum(self.weight_high, -self.weight_low)


@dataclass(frozen=True)
class Inspection:
    """The result of :func:`fxquant.debug.inspect`. Print it for a table.

    Attributes:
        steps: the layers by path after each step of the pipeline, in order.
        sqnr: SQNR [dB] of the output of each int8 layer in the frozen model.
    """

    steps: Mapping[str, Mapping[str, LayerView]]
    sqnr: Mapping[str, float]

    def __str__(self) -> str:
        first, last = next(iter(self.steps.values())), list(self.steps.values())[-1]
        rows = []
        for path, view in last.items():
            before = first.get(path, view)
            decibel = f"{self.sqnr[path]:.1f}" if path in self.sqnr else "fp32"
            weights = f"{_span(before.weight_ranges)} -> {_span(view.weight_ranges)}"
            outputs = f"{before.low:.3g}..{before.high:.3g} -> {view.low:.3g}..{view.high:.3g}"
            rows.append((path, decibel, weights, outputs))
        return tabulate(rows, ("layer", "SQNR dB", "weight range by channel", "output range"), disable_numparse=True)


def _span(ranges: Tensor) -> str:
    return f"{float(ranges.min()):.3g}..{float(ranges.max()):.3g}"
