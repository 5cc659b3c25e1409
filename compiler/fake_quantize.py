r"""Fake quantization: a value rounded to what its integers stand for, with gradients that ignore the rounding.

The straight-through estimator (Bengio et al. 2013, arXiv:1308.3432): the gradient passes where the value lies within
the range of the integers, and is zero outside, where it is clipped. A learned scale has the gradient of LSQ (Esser et
al. 2020, arXiv:1902.08153, eq. 3): with :math:`v = x / s` and integers from ``qmin`` to ``qmax`` around a zero point
``z``,

.. math:: \frac{\partial \hat x}{\partial s} = round(v) - v

inside, and ``qmin - z`` and ``qmax - z`` below and above. What is trained is :math:`\theta = \ln(s / s_0)`, so that
neither Adam's steps nor weight decay depend on how small the scale is (as Jain et al. 2020, arXiv:1903.08066, argue).
Its gradient is scaled so that a step of plain SGD changes ``s`` relatively as much as LSQ's own does where it begins:
by :math:`1 / (s_0^2 \sqrt{N\, qmax})` for a value of ``N`` elements; and clipped to 1, so that none changes it by more
than a factor of :math:`e^{lr}`: plain LSQ diverges where the loss is steep.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .errors import TrainingError
from .qdq import along
from .types import QParams, affine_qparams, symmetric_qparams

FARTHEST = 20.0  # that a learned scale may go from where it began, as a logarithm
MOMENTUM = 0.01  # weight of a new batch in the moving averages, as in torch.ao


class _FakeQuantize(torch.autograd.Function):
    """``scale``: a float, or one per channel in a shape that broadcasts; then ``zero_point`` is a tensor alike."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, theta: Tensor | None, scale: Any, zero_point: Any, qmin: int, qmax: int, gain: Any
    ) -> Tensor:
        # torch.fake_quantize_per_tensor_affine gives the same, one element at a time: a dozen times slower on x86.
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
    """The sum of products, without a tensor of them, nor a copy where both lie alike in memory."""
    order = sorted(range(a.dim()), key=a.stride, reverse=True)
    return torch.dot(a.permute(order).reshape(-1), b.permute(order).reshape(-1))


def fake_quantize(x: Tensor, known: QParams, theta: Tensor | None = None) -> Tensor:
    """``x`` (any shape) as its integers have it; computed in fp32, given in the dtype of ``x``.

    Args:
        theta: a parameter that is to get LSQ's gradient; ``known`` has the scale that follows from it.
    """
    gain: Any = 0.0
    if theta is not None:
        gain = _gain(known.scale * theta.detach().neg().exp(), x[:1].numel() if x.dim() else 1, known.qmax)
    rounded: Tensor = _FakeQuantize.apply(x.float(), theta, known.scale, known.zero_point, known.qmin, known.qmax, gain)
    return rounded.to(x.dtype)


def fake_quantize_channels(
    w: Tensor, scale: Tensor, zero_point: Tensor, axis: int, qmin: int, qmax: int, theta: Tensor | None = None
) -> Tensor:
    """``w`` as its integers have it; ``scale``, ``zero_point`` and ``theta`` along ``axis``, or one in all."""
    gain: Any = 0.0
    if theta is not None:
        gain = _gain(scale * theta.detach().neg().exp(), w.numel() // scale.numel(), qmax)
    scales, zero_points = along(scale, w, axis), along(zero_point, w, axis)
    rounded: Tensor = _FakeQuantize.apply(w.float(), theta, scales, zero_points, qmin, qmax, gain)
    return rounded.to(w.dtype)


def _gain(scale: Tensor, numbers: int, qmax: int) -> Tensor:
    """For a theta whose scale was ``scale`` where it began: were it the present one, steps would grow as it shrinks."""
    return 1.0 / (scale**2 * math.sqrt(max(numbers, 1) * qmax))


def held(theta: Tensor | None) -> Tensor | None:
    """A frozen ``theta``: in the graph with a gradient of zero, as DistributedDataParallel waits for one."""
    return None if theta is None else theta * 0.0


def check_theta(theta: Tensor, label: str) -> None:
    """Refuse learned scales that cannot be meant.

    Raises:
        TrainingError: ``theta`` is NaN, or says that a scale has become some eight decades larger or smaller.
    """
    if not bool((theta.detach().abs() < FARTHEST).all()):
        raise TrainingError(
            f"The learned scale of '{label}' is NaN, or exp({FARTHEST:g}) times what it was. The loss has diverged, or "
            "a batch holds NaN: go back to the last good checkpoint, and lower the learning rate (or that of theta "
            "alone, in a parameter group of its own)."
        )


class FakeQuantize(nn.Module):
    """Rounds an activation to uint8 and back; its range follows the values, or is learned.

    In training mode with gradients on, until :meth:`freeze`, the range is an exponential moving average of each batch's
    extremes, or moves by the gradient of ``theta``. In eval mode it stays as it is.

    Attributes:
        label: the value it rounds, for messages.
        joined: the fake-quants, itself included, that share one set of qparams (values that a ``cat`` joins): the
            range is the union of theirs, and ``theta`` is that of the first.
        theta: log of the scale against that of ``range``; None where it is not learned.
        range: lowest and highest value.
    """

    range: Tensor

    def __init__(self, label: str, known: QParams, symmetric: bool = False) -> None:
        super().__init__()
        self.label, self.symmetric = label, symmetric
        self.joined = [self]
        self.frozen = False
        high = known.high
        self.register_buffer("range", torch.tensor([-high if symmetric else known.low, high]))
        self.theta: nn.Parameter | None = None

    def learn(self) -> None:
        """Learn the scale from now on."""
        self.theta = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (any shape) rounded.

        Raises:
            TrainingError: ``x`` holds NaN or inf while its range is followed.
        """
        theta = self.joined[0].theta
        if self.training and torch.is_grad_enabled() and not self.frozen and theta is None and x.numel():
            self._follow(x.detach())
        return fake_quantize(x, self.qparams(), held(theta) if self.frozen else theta)

    def _follow(self, x: Tensor) -> None:
        low, high = (float(v) for v in torch.aminmax(x))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise TrainingError(
                f"NaN or inf in the output of '{self.label}' in training. The loss has diverged, or a batch holds NaN: "
                "go back to the last good checkpoint, and lower the learning rate."
            )
        self.range.lerp_(self.range.new_tensor([low, high]), MOMENTUM)

    def qparams(self) -> QParams:
        """Those that it rounds with now.

        Raises:
            TrainingError: a learned scale has left all bounds.
        """
        lows, highs = zip(*(fq.range.tolist() for fq in self.joined), strict=True)
        first = self.joined[0]
        known = (symmetric_qparams if first.symmetric else affine_qparams)(min(lows), max(highs))
        if first.theta is None or self.frozen:
            return known
        check_theta(first.theta, self.label)
        scale = float(torch.tensor(known.scale * math.exp(float(first.theta.detach()))))
        return QParams(scale, known.zero_point, known.qmin, known.qmax)

    @torch.no_grad()
    def freeze(self) -> None:
        """Let the range be what it is from now on, whatever an optimizer does to ``theta``."""
        if self.theta is not None and not self.frozen:
            for fq in self.joined:
                fq.range.mul_(self.theta.exp())
            self.theta.zero_()
        self.frozen = True

    def extra_repr(self) -> str:
        return f"{self.label}: {self.qparams()}"
