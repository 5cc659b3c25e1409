"""Ways to choose a clipping range from a histogram."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .histogram import Histogram

LEVELS = 256
PERCENTILE = 0.9999


def mse_range(histogram: Histogram, low: float, high: float, symmetric: bool = False) -> tuple[float, float]:
    """The range of least squared quantization error at 256 levels, by line searches over one end after the other."""
    centers, counts = _filled(histogram)
    if not len(centers):
        return low, high
    shrink = torch.linspace(0.2, 1.0, 81, dtype=torch.float64)
    if symmetric:
        bound = max(-low, high)
        best = float(shrink[_errors(centers, counts, -shrink * bound, shrink * bound).argmin()])
        return -best * bound, best * bound
    ends = [min(low, 0.0), max(high, 0.0)]
    full = tuple(ends)
    for _ in range(2):
        for end in (0, 1):
            trial = [torch.full_like(shrink, e) for e in ends]
            trial[end] = shrink * full[end]
            ends[end] = float(trial[end][_errors(centers, counts, trial[0], trial[1]).argmin()])
    return ends[0], ends[1]


def _errors(centers: Tensor, counts: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Summed squared error of each range: rounding inside (step^2 / 12), clipping outside."""
    step = ((high - low) / (LEVELS - 1)).clamp_min(1e-300)[:, None]
    clipped = centers[None, :].clamp(low[:, None], high[:, None])
    outside = (centers[None, :] - clipped).square()
    inside = (clipped == centers[None, :]) * step.square() / 12
    return ((outside + inside) * counts[None, :]).sum(1)


def whole_range(histogram: Histogram, low: float, high: float, symmetric: bool = False) -> tuple[float, float]:
    """The extremes: nothing is clipped."""
    return low, high


def percentile_range(histogram: Histogram, low: float, high: float, symmetric: bool = False) -> tuple[float, float]:
    """The range that leaves ``1 - PERCENTILE`` of the values outside, half of them at each end.

    It is never narrower than the range of least squared error: in transformers a few values in ten thousand are
    hundreds of times larger than the others, and the model depends on them.
    """
    centers, counts = _filled(histogram)
    if not len(centers):
        return low, high
    tail = (1 - PERCENTILE) / 2 * float(counts.sum())
    below, above = counts.cumsum(0), counts.flip(0).cumsum(0)
    first = int((below <= tail).sum())
    last = len(centers) - 1 - int((above <= tail).sum())
    half = float(histogram.centers()[1] - histogram.centers()[0]) / 2
    # A tail thinner than one bin keeps the exact extreme.
    inner = mse_range(histogram, low, high, symmetric)
    return (
        min(max(low, float(centers[first]) - half), inner[0]) if first else low,
        max(min(high, float(centers[last]) + half), inner[1]) if last < len(centers) - 1 else high,
    )


def entropy_range(histogram: Histogram, low: float, high: float, symmetric: bool = False) -> tuple[float, float]:
    """The symmetric clip of the range with the least KL divergence (Migacz, GTC 2017, "8-bit inference")."""
    centers, counts = _filled(histogram)
    if not len(centers):
        return low, high
    low, high = min(low, 0.0), max(high, 0.0)
    bound = max(-low, high)
    best, best_divergence = bound, math.inf
    for share in torch.linspace(0.3, 1.0, 71, dtype=torch.float64):
        clip = float(share) * bound
        ends = max(low, -clip), min(high, clip)
        divergence = _divergence(centers, counts, *ends)
        if divergence <= best_divergence:
            best, best_divergence = clip, divergence
    return max(low, -best), min(high, best)


def _divergence(centers: Tensor, counts: Tensor, low: float, high: float) -> float:
    """KL(P || Q): P the clipped counts, Q the same counts spread evenly within each of the 256 levels."""
    inside = (centers >= low) & (centers <= high)
    level = ((centers.clamp(low, high) - low) / max((high - low) / LEVELS, 1e-300)).long().clamp_max(LEVELS - 1)
    kept = counts * inside
    totals = torch.zeros(LEVELS, dtype=torch.float64).index_add_(0, level, kept)
    members = torch.zeros(LEVELS, dtype=torch.float64).index_add_(0, level, (kept > 0).double())
    q = torch.where(kept > 0, (totals / members.clamp_min(1))[level], 0.0)
    p = kept.clone()
    edges = inside.nonzero().flatten()
    if not len(edges):
        return math.inf
    p[edges[0]] += counts[: int(edges[0])].sum()
    p[edges[-1]] += counts[int(edges[-1]) + 1 :].sum()
    used = (p > 0) & (q > 0)
    p, q = p / p.sum(), q / q.sum()
    return float((p[used] * (p[used] / q[used]).log()).sum())


def _filled(histogram: Histogram) -> tuple[Tensor, Tensor]:
    """Centers and counts of the bins that are not empty."""
    used = histogram.counts > 0
    return histogram.centers()[used], histogram.counts[used]
