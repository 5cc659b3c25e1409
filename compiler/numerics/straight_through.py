r"""Fake quantization: quantize and dequantize, with gradients that ignore the rounding.

The straight-through estimator (Bengio et al. 2013, arXiv:1308.3432) passes the gradient where the value is within the
range of the integers, and gives zero outside, where it is clipped. A learned scale has the gradient of LSQ (Esser et
al. 2020, arXiv:1902.08153, eq. 3): with :math:`v = x / s`, integers from ``qmin`` to ``qmax`` and a zero point ``z``,

.. math:: \frac{\partial \hat x}{\partial s} = round(v) - v

inside the range, ``qmin - z`` below and ``qmax - z`` above. The parameter is :math:`\theta = \ln(s / s_0)`, so that
neither the steps of Adam nor weight decay depend on the size of the scale (Jain et al. 2020, arXiv:1903.08066). Its
gradient is multiplied by :math:`1 / (s_0^2 \sqrt{N\, qmax})` for a value of ``N`` elements, so that the first step of
plain SGD changes ``s`` by the same factor as in LSQ. It is clipped to 1, so that no step changes ``s`` by more than a
factor of :math:`e^{lr}`: plain LSQ diverges where the loss is steep.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..core.errors import TrainingError
from ..core.qparams import QParams
from .quantize import along

FARTHEST = 20.0  # largest change of the logarithm of a learned scale


class _FakeQuantize(torch.autograd.Function):
    """``scale`` and ``zero_point`` are numbers, or both tensors that broadcast over ``x``."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, theta: Tensor | None, scale: Any, zero_point: Any, qmin: int, qmax: int, gain: Any
    ) -> Tensor:
        # torch.fake_quantize_per_tensor_affine gives the same values, but is not vectorized on x86: 12 times slower.
        if isinstance(scale, float):
            rounded = (x * torch.tensor(1.0 / scale, dtype=torch.float32)).round_()
            rounded.clamp_(qmin - zero_point, qmax - zero_point).mul_(scale)
        else:
            rounded = (x / scale).round_().add_(zero_point).clamp_(qmin, qmax).sub_(zero_point).mul_(scale)
        ctx.constants = scale, zero_point, qmin, qmax, gain
        ctx.save_for_backward(x, rounded if theta is not None else None, theta)
        return rounded

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, rounded, theta = ctx.saved_tensors
        scale, zero_point, qmin, qmax, gain = ctx.constants
        if isinstance(scale, float):
            low, high = ((q - zero_point) * scale for q in (qmin - 0.5, qmax + 0.5))
            passed = torch.ops.aten.hardtanh_backward(grad, x, low, high)
        else:
            passed = torch.ops.aten.hardtanh_backward(grad, x / scale + zero_point, qmin - 0.5, qmax + 0.5)
        by_scale = None
        if theta is not None and theta.numel() == 1:
            by_scale = ((_dot(grad, rounded) - _dot(passed, x)) * gain).reshape(theta.shape)
        elif theta is not None:
            product = grad * rounded - passed * x
            by_scale = product.sum([d for d in range(x.dim()) if scale.shape[d] == 1]) * gain
        by_scale = None if by_scale is None else by_scale.clamp(-1.0, 1.0)
        return passed, by_scale, None, None, None, None, None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The sum of the products. Makes no copy if both tensors have the same memory layout."""
    order = sorted(range(a.dim()), key=a.stride, reverse=True)
    return torch.dot(a.permute(order).reshape(-1), b.permute(order).reshape(-1))


def fake_quantize(x: Tensor, known: QParams, theta: Tensor | None = None) -> Tensor:
    """``x`` (any shape) quantized and dequantized; computed in fp32, returned in the dtype of ``x``.

    Args:
        known: scale, zero point and bounds.
        theta: the parameter that ``known.scale`` follows from; it gets the gradient of LSQ.
    """
    gain: Any = 0.0
    if theta is not None:
        gain = _gain(known.scale * theta.detach().neg().exp(), x[:1].numel() if x.dim() else 1, known.qmax)
    rounded: Tensor = _FakeQuantize.apply(x.float(), theta, known.scale, known.zero_point, known.qmin, known.qmax, gain)
    return rounded.to(x.dtype)


def fake_quantize_channels(
    w: Tensor, scale: Tensor, zero_point: Tensor, axis: int, qmin: int, qmax: int, theta: Tensor | None = None
) -> Tensor:
    """``w`` quantized and dequantized; ``scale``, ``zero_point`` and ``theta`` have one entry, or one per channel."""
    gain: Any = 0.0
    if theta is not None:
        gain = _gain(scale * theta.detach().neg().exp(), w.numel() // scale.numel(), qmax)
    scales, zero_points = along(scale, w, axis), along(zero_point, w, axis)
    rounded: Tensor = _FakeQuantize.apply(w.float(), theta, scales, zero_points, qmin, qmax, gain)
    return rounded.to(w.dtype)


def _gain(scale: Tensor, numbers: int, qmax: int) -> Tensor:
    """The factor of the gradient of theta. ``scale`` is the initial one: with the present one, small scales diverge."""
    return 1.0 / (scale**2 * math.sqrt(max(numbers, 1) * qmax))


def held(theta: Tensor | None) -> Tensor | None:
    """A frozen ``theta``, with a gradient of zero: DistributedDataParallel waits for a gradient."""
    return None if theta is None else theta * 0.0


def check_theta(theta: Tensor, label: str) -> None:
    """Refuse learned scales that have diverged.

    Raises:
        TrainingError: ``theta`` is NaN, or the scale is about eight decades larger or smaller than at first.
    """
    if not bool((theta.detach().abs() < FARTHEST).all()):
        raise TrainingError(
            f"The learned scale of '{label}' is NaN, or has changed by more than exp({FARTHEST:g}). The loss diverged, "
            "or a batch holds NaN. Go back to the last good checkpoint and lower the learning rate, of all parameters "
            "or of theta alone."
        )
