"""The module that rounds an activation during training."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..core.errors import TrainingError
from ..core.markers import Quantized
from ..core.qparams import QParams, affine_qparams, symmetric_qparams
from .straight_through import check_theta, fake_quantize, held

MOMENTUM = 0.01  # weight of a new batch in the moving averages, as in torch.ao


class FakeQuantize(nn.Module, Quantized):
    """Rounds an activation to uint8 and back. Its range follows the values, or is learned.

    In training mode with gradients on, until :meth:`freeze`, the range is an exponential moving average of the extremes
    of each batch, or changes by the gradient of ``theta``. In eval mode the range stays as it is.

    Attributes:
        label: name of the value, for messages.
        joined: the fake-quants, this one included, that share one set of qparams because a ``cat`` joins their values.
            The range is the union of their ranges, and ``theta`` is that of the first.
        theta: logarithm of the scale relative to that of ``range``; None if it is not learned.
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
                f"NaN or inf in the output of '{self.label}' in training. The loss diverged, or a batch holds NaN. "
                "Go back to the last good checkpoint and lower the learning rate."
            )
        self.range.lerp_(self.range.new_tensor([low, high]), MOMENTUM)

    def qparams(self) -> QParams:
        """The parameters that it rounds with now.

        Raises:
            TrainingError: a learned scale has diverged.
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
        """Keep the range as it is from now on, whatever an optimizer does to ``theta``."""
        if self.theta is not None and not self.frozen:
            for fq in self.joined:
                fq.range.mul_(self.theta.exp())
            self.theta.zero_()
        self.frozen = True

    def extra_repr(self) -> str:
        return f"{self.label}: {self.qparams()}"
