"""Quantization parameters of a tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class QParams:
    """Per-tensor affine quantization parameters: ``real = scale * (integer - zero_point)``."""

    scale: float
    zero_point: int
    qmin: int = 0
    qmax: int = 255

    @property
    def low(self) -> float:
        """The smallest real value that can be represented."""
        return self.scale * (self.qmin - self.zero_point)

    @property
    def high(self) -> float:
        """The largest real value that can be represented."""
        return self.scale * (self.qmax - self.zero_point)

    def clamps_to(self, low: float, high: float) -> bool:
        """Whether saturation at ``qmin`` and ``qmax`` does what a clamp to ``[low, high]`` would do.

        True if no value that can be represented lies outside the bounds by more than half a step.
        """
        half = self.scale / 2
        return self.low >= low - half and self.high <= high + half

    def __str__(self) -> str:
        return f"{self.scale:.4g}/{self.zero_point}"


def affine_qparams(low: float, high: float, qmin: int = 0, qmax: int = 255) -> QParams:
    """Parameters that cover ``[low, high]`` and zero, with an integer zero point."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = _usable((high - low) / (qmax - qmin))
    zero_point = round(qmin - low / scale)
    return QParams(scale, max(qmin, min(qmax, zero_point)), qmin, qmax)


def symmetric_qparams(low: float, high: float, qmin: int = 0, qmax: int = 255) -> QParams:
    """Parameters that cover ``[low, high]``, with the zero point in the middle of the integers."""
    zero_point = (qmin + qmax + 1) // 2
    bound = max(-low, high, 0.0)
    return QParams(_usable(bound / (qmax - zero_point)), zero_point, qmin, qmax)


def _usable(scale: float) -> float:
    """``scale`` rounded to fp32, as the kernels hold it; 1 for a constant zero, for which any scale will do."""
    smallest = float(torch.finfo(torch.float32).tiny) * 2**10
    return float(torch.tensor(scale)) if math.isfinite(scale) and scale > smallest else 1.0
