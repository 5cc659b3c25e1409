"""The base of all observers: statistics of an activation in bounded memory."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..core.errors import CalibrationError
from ..core.markers import Quantized
from ..core.qparams import QParams, affine_qparams, symmetric_qparams


class Observer(nn.Module, Quantized):
    """Passes a value through unchanged and keeps its extremes. :meth:`qparams` says how to quantize the value.

    It also keeps the largest value per channel (axis 1 of tensors with more than two axes, else the last axis), which
    bounds the integers that are multiplied with one weight.

    Attributes:
        label: name of the value, for messages.
        symmetric: place the zero point in the middle of the integers.
        enabled: False while values only pass through.
        behind: the max pool after the value, if that is all that reads it: what it drops needs no range. Else None.
        count: number of batches seen.
        low, high: extremes of all values seen.
        channel_high: ``(channels,)``, the largest value of each channel; None if nothing was seen.
        dims: number of axes of the tensors seen.
        named: the subclasses by their name in ``QuantConfig.observer``.
    """

    named: ClassVar[dict[str, type[Observer]]] = {}

    def __init_subclass__(cls, name: str = "", **options: Any) -> None:
        super().__init_subclass__(**options)
        if name in cls.named:
            raise ValueError(f"There is an observer named {name!r} already: {cls.named[name].__name__}.")
        if name:
            cls.named[name] = cls

    def __init__(self, label: str, symmetric: bool = False) -> None:
        super().__init__()
        self.label, self.symmetric = label, symmetric
        self.enabled = True
        self.behind: Callable[[Tensor], Tensor] | None = None
        self.count = 0
        self.low, self.high = math.inf, -math.inf
        self.channel_high: Tensor | None = None
        self.dims = 0

    def forward(self, x: Tensor) -> Tensor:
        """Observe ``x`` (any shape, fp32) and return it.

        Raises:
            CalibrationError: ``x`` holds NaN or inf.
        """
        if self.enabled and isinstance(x, Tensor) and x.numel():
            self.observe(x.detach() if self.behind is None else self.behind(x.detach()))
        return x

    def observe(self, x: Tensor) -> None:
        """Add the values of ``x`` to the statistics. Errors as of :meth:`forward`."""
        low, high = (float(v) for v in torch.aminmax(x))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise CalibrationError(
                f"NaN or inf in the output of '{self.label}' during calibration. Check the calibration batch and "
                "the weights before this layer."
            )
        self._update(x, low, high)
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._update_channels(x)
        self.count += 1

    def _update(self, x: Tensor, low: float, high: float) -> None:
        """Update the statistics of a subclass by a batch. ``count`` is that of the batches before it."""

    def _update_channels(self, x: Tensor) -> None:
        self.dims = x.dim()
        axis = 1 if x.dim() > 2 else x.dim() - 1
        top = x.amax([d for d in range(x.dim()) if d != axis]) if x.dim() > 1 else x.amax().reshape(1)
        self.channel_high = _highest(self.channel_high, top)

    def merge(self, other: Observer) -> None:
        """Add the statistics of ``other``, an observer of the same class."""
        if type(self) is not type(other):
            raise TypeError(f"cannot merge {type(other).__name__} into {type(self).__name__}")
        if type(self)._update is not Observer._update and type(self)._merge is Observer._merge:
            raise NotImplementedError(f"{type(self).__name__} has statistics of its own, so it must define _merge().")
        self._merge(other)
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.count += other.count
        if other.channel_high is not None:
            self.channel_high = _highest(self.channel_high, other.channel_high)

    def _merge(self, other: Observer) -> None:
        """Merge the statistics of a subclass. Called before the extremes and ``count`` are merged."""

    def range(self) -> tuple[float, float]:
        """The lowest and highest value to represent, two finite numbers. Called only after something was seen."""
        return self.low, self.high

    def qparams(self, qmin: int = 0, qmax: int = 255) -> QParams:
        """Quantization parameters for the values seen.

        Raises:
            CalibrationError: nothing was seen.
        """
        if not self.count:
            raise CalibrationError(
                f"'{self.label}' got no value during calibration. Use batches that reach it, or leave it in fp32 by an "
                "override."
            )
        low, high = self.range()
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise ValueError(
                f"{type(self).__name__}.range() returned ({low}, {high}), not a finite lowest and highest value."
            )
        return self.qparams_of(low, high, qmin, qmax)

    def qparams_of(self, low: float, high: float, qmin: int = 0, qmax: int = 255) -> QParams:
        """Parameters that cover ``[low, high]``; symmetric if the observer is."""
        return (symmetric_qparams if self.symmetric else affine_qparams)(low, high, qmin, qmax)

    def extra_repr(self) -> str:
        seen = f"[{self.low:.4g}, {self.high:.4g}], {self.count} batches" if self.count else "nothing seen"
        return f"{self.label}: {seen}"


def _highest(a: Tensor | None, b: Tensor) -> Tensor:
    """Elementwise maximum; the maximum of all values if the numbers of channels differ."""
    if a is None:
        return b
    return torch.maximum(a, b) if a.shape == b.shape else torch.maximum(a.amax(), b.amax()).reshape(1)


def joint_qparams(observers: Sequence[Observer]) -> QParams:
    """One set of qparams for values that a ``cat`` joins: those of an observer that saw all of them."""
    if len({type(o) for o in observers}) > 1:
        lows, highs = zip(*(o.range() for o in observers), strict=True)
        return observers[0].qparams_of(min(lows), max(highs))
    whole = copy.deepcopy(observers[0])
    for other in observers[1:]:
        whole.merge(other)
    return whole.qparams()


@contextlib.contextmanager
def observers_paused(module: nn.Module) -> Iterator[None]:
    """Within it, the observers in ``module`` only pass values through."""
    running = [m for m in module.modules() if isinstance(m, Observer) and m.enabled]
    for observer in running:
        observer.enabled = False
    try:
        yield
    finally:
        for observer in running:
            observer.enabled = True


def stop_observing(module: nn.Module) -> None:
    """Let the observers in ``module`` only pass values through from now on."""
    for observer in module.modules():
        if isinstance(observer, Observer):
            observer.enabled = False
