"""A histogram of a stream of values that can be merged with another."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BINS = 4096
SMALLEST = -60  # exponent of the narrowest histogram: smaller values are all in the two bins around zero


class Histogram:
    """Counts over ``[-2**exponent, 2**exponent)`` in equal bins.

    The limits are powers of two, so that doubling the range adds neighboring bins and loses nothing: the histograms of
    two halves of the data merge into exactly the histogram of all of it.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.exponent: int | None = None

    def add(self, x: Tensor, largest: float) -> None:
        """Count the values of ``x``. ``largest`` is at least the largest magnitude among them."""
        self._reach(max(math.frexp(largest)[1], SMALLEST))
        assert self.exponent is not None
        # Exact: multiplying by a power of two changes the exponent only.
        bins = torch.floor(x.flatten() * 2.0 ** (math.log2(BINS) - 1 - self.exponent)).to(torch.int32)
        bins.add_(BINS // 2).clamp_(0, BINS - 1)
        self.counts += torch.bincount(bins, minlength=BINS)

    def merge(self, other: Histogram) -> None:
        """Add the counts of ``other``."""
        if other.exponent is None:
            return
        self._reach(other.exponent)
        assert self.exponent is not None
        self.counts += _doubled(other.counts, self.exponent - other.exponent)

    def _reach(self, exponent: int) -> None:
        if self.exponent is None:
            self.exponent = exponent
        elif exponent > self.exponent:
            self.counts = _doubled(self.counts, exponent - self.exponent)
            self.exponent = exponent

    def centers(self) -> Tensor:
        """The middle of each bin."""
        width = 2.0 ** ((self.exponent or 0) + 1) / BINS
        return (torch.arange(BINS, dtype=torch.float64) - BINS // 2 + 0.5) * width


def _doubled(counts: Tensor, times: int) -> Tensor:
    """``counts`` over a range ``2**times`` as wide."""
    for _ in range(min(times, int(math.log2(BINS)) - 1)):
        inner = counts.reshape(-1, 2).sum(1)
        counts = torch.zeros_like(counts)
        counts[BINS // 4 : BINS - BINS // 4] = inner
    return counts
