"""Signal-to-quantization-noise ratios of outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.tensors import tensors_of

CONSTANT = 1e-10  # share of the power of a tensor that may be fp32 rounding of its mean


def squares(exact: Any, other: Any) -> tuple[Tensor, Tensor]:
    """Sums of squares over all float tensors of two outputs: of ``exact``, and of the difference.

    One value per item of the first axis; one value in all if the tensors differ in its size. Outputs of different
    shapes, which then depend on values, differ by infinity.
    """
    pairs = [
        (a.double(), (a - b).double() if a.shape == b.shape else torch.full_like(a, torch.inf, dtype=torch.double))
        for a, b in zip(tensors_of(exact), tensors_of(other), strict=True)
        if a.is_floating_point()
    ]
    items = {a.shape[0] if a.dim() else 1 for a, _ in pairs}
    rows = items.pop() if len(items) == 1 else 1
    zero = torch.zeros(rows, dtype=torch.double)
    return (
        sum((a.reshape(rows, -1).square().sum(1) for a, _ in pairs), zero),
        sum((d.reshape(rows, -1).square().sum(1) for _, d in pairs), zero),
    )


def decibels(signal: float, noise: float) -> float:
    """Signal-to-quantization-noise ratio [dB] of two sums of squares; -inf if the noise is NaN or inf."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 and math.isfinite(noise) else -math.inf


def sqnr(exact: Sequence[Any], other: Sequence[Any]) -> float:
    """SQNR [dB] of ``other`` against ``exact``, over all batches of outputs."""
    signal, noise = (torch.cat(parts) for parts in zip(*map(squares, exact, other), strict=True))
    return decibels(float(signal.sum()), float(noise.sum()))


def worst_sqnr(exact: Any, other: Any) -> float:
    """SQNR [dB] of the output tensor that has the least. A tensor of zeros says nothing; infinite if all are."""
    pairs = zip(tensors_of(exact), tensors_of(other), strict=True)
    powers = [tuple(float(p.sum()) for p in squares(a, b)) for a, b in pairs if a.is_floating_point()]
    return min((decibels(signal, noise) for signal, noise in powers if signal != 0), default=math.inf)


def relative_noise(exact: Any, other: Any) -> float:
    """The power of the difference by that of the signal without its mean, summed over the tensors of an output.

    Of a tensor that is constant, its mean is the signal.
    """
    total = 0.0
    for a, b in zip(tensors_of(exact), tensors_of(other), strict=True):
        whole = float(a.double().square().sum()) if a.is_floating_point() else 0.0
        if whole:  # a tensor of zeros says nothing
            power = float((a.double() - a.double().mean()).square().sum())
            noise = float((a - b).double().square().sum())
            total += noise / (power if power > CONSTANT * whole else whole)
    return total


def surely_nearer(exact: Sequence[Any], before: Sequence[Any], after: Sequence[Any]) -> bool:
    """Whether ``after`` is nearer to ``exact`` than ``before``, by more than one standard error over the items.

    The gain is the mean over the items of the logarithm; the noise of all together must fall, too, as a gain in many
    items may cost much in a few.
    """
    noises = [sum(map(relative_noise, exact, other)) for other in (before, after)]
    if noises[1] >= noises[0]:
        return False
    was, now = (torch.cat([squares(e, o)[1] for e, o in zip(exact, other, strict=True)]) for other in (before, after))
    gain = (was.clamp_min(1e-30) / now.clamp_min(1e-30)).log()
    error = gain.std() / len(gain) ** 0.5 if len(gain) > 1 else 0.0
    return bool(gain.mean() > error)
