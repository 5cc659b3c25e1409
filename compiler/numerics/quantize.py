"""Quantize and dequantize in plain torch ops.

Affine quantization as in Jacob et al. 2018 (arXiv:1712.05877), eq. 1: ``real = scale * (integer - zero_point)``.
Integers are ``torch.uint8`` (qmin >= 0), ``torch.int8``, or ``torch.int16`` where these do not hold the range. Rounding
is half to even, as in the kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.qparams import QParams

SMALLEST_SCALE = 1e-35  # its reciprocal is finite


def quantize(x: Tensor, scale: float, zero_point: int, qmin: int, qmax: int) -> Tensor:
    """``x`` (any shape, float) as integers in ``[qmin, qmax]``, one scale for the whole tensor."""
    # The x86 kernels multiply by the fp32 reciprocal; a division would round some ties the other way.
    steps = (x * torch.tensor(1.0 / scale, dtype=torch.float32)).round_()
    return steps.add_(zero_point).clamp_(qmin, qmax).to(_storage(qmin, qmax))


def dequantize(q: Tensor, scale: float, zero_point: int) -> Tensor:
    """The float values of integers ``q``, one scale for the whole tensor."""
    return q.to(torch.float32).sub_(zero_point).mul_(scale)


def round_trip(x: Tensor, known: QParams) -> Tensor:
    """``x`` quantized and dequantized."""
    integers = quantize(x, known.scale, known.zero_point, known.qmin, known.qmax)
    return dequantize(integers, known.scale, known.zero_point)


def round_trip_rows(x: Tensor) -> Tensor:
    """``x`` quantized to 8 bits and dequantized, with a scale and a zero point for each row.

    A row is what the last axis holds. Its range includes zero, so that zero is exact. A row that is not finite is NaN.
    """
    low, high = (bound.clamp(*limit) for bound, limit in ((x.amin(-1, True), (None, 0)), (x.amax(-1, True), (0, None))))
    scale = (high - low) * torch.tensor(1 / 255, dtype=torch.float32)
    scale = torch.where(scale > SMALLEST_SCALE, scale, torch.ones_like(scale))
    zero_point = (-low * scale.reciprocal()).round_().clamp_(max=255)
    poison = (x - x).sum(-1, True)
    return (x * scale.reciprocal() + zero_point).round_().clamp_(0, 255).sub_(zero_point).mul_(scale + poison)


def quantize_channels(w: Tensor, scale: Tensor, zero_point: Tensor, axis: int, qmin: int, qmax: int) -> Tensor:
    """``w`` as integers; ``scale`` and ``zero_point`` have one entry per index of ``axis``, or one in all."""
    steps = (w / along(scale, w, axis)).round_()
    return steps.add_(along(zero_point, w, axis)).clamp_(qmin, qmax).to(_storage(qmin, qmax))


def dequantize_channels(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    """The float values of integers ``q``; ``scale`` and ``zero_point`` as in :func:`quantize_channels`."""
    return q.to(torch.float32).sub_(along(zero_point, q, axis)).mul_(along(scale, q, axis))


def along(values: Tensor, like: Tensor, axis: int) -> Tensor:
    """``values``, one or one per index of ``axis``, in a shape that broadcasts over ``like``."""
    shape = [1] * like.dim()
    shape[axis] = -1
    return values.reshape(shape)


def _storage(qmin: int, qmax: int) -> torch.dtype:
    if qmax - qmin > 255:
        return torch.int16
    return torch.uint8 if qmin >= 0 else torch.int8
