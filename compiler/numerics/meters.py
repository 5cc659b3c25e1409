"""Metrics of outputs, accumulated over batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..core.tensors import tensors_of
from .metrics import decibels, squares

Measure = Callable[[Any, Any], float]


class SqnrMeter:
    """Signal-to-quantization-noise ratio [dB] over all outputs added."""

    def __init__(self) -> None:
        self.signal = self.noise = 0.0

    def add(self, exact: Any, other: Any) -> None:
        signal, noise = squares(exact, other)
        self.signal, self.noise = self.signal + float(signal.sum()), self.noise + float(noise.sum())

    @property
    def value(self) -> float:
        return decibels(self.signal, self.noise)


class MeanMeter:
    """The mean of a function of two outputs over all outputs added."""

    def __init__(self, measure: Measure) -> None:
        self.measure, self.sum, self.count = measure, 0.0, 0

    def add(self, exact: Any, other: Any) -> None:
        try:
            value = float(self.measure(exact, other))
        except Exception as error:
            raise ConfigError(
                "metric must return a number for two outputs, that of the fp32 model and that of the int8 model: "
                f"{type(error).__name__}: {error}"
            ) from error
        self.sum, self.count = self.sum + value, self.count + 1

    @property
    def value(self) -> float:
        return self.sum / self.count if self.count else math.nan


def _mse(exact: Any, other: Any) -> float:
    _, noise = squares(exact, other)
    return float(noise.sum()) / sum(t.numel() for t in tensors_of(exact) if t.is_floating_point())


def _kl(exact: Any, other: Any) -> float:
    def one(a: Tensor, b: Tensor) -> Tensor:
        return nn.functional.kl_div(b.log_softmax(-1), a.log_softmax(-1), reduction="none", log_target=True).sum(-1)

    pairs = zip(tensors_of(exact), tensors_of(other), strict=True)
    return float(torch.cat([one(a, b).reshape(-1) for a, b in pairs if a.is_floating_point()]).mean())


Meter = SqnrMeter | MeanMeter

METRICS: dict[str, Callable[[], Meter]] = {
    "sqnr": SqnrMeter,
    "mse": lambda: MeanMeter(_mse),
    "kl": lambda: MeanMeter(_kl),
}
