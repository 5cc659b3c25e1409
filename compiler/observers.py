"""Observers: streaming statistics of activations, in bounded memory, mergeable, and the range each of them gives."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from .errors import CalibrationError
from .ranges import Histogram, entropy_range, mse_range, percentile_range, whole_range
from .types import QParams, affine_qparams, symmetric_qparams

Choose = Callable[[Histogram, float, float, bool], tuple[float, float]]


class Observer(nn.Module):
    """Sees a value pass through unchanged and keeps its extremes; :meth:`qparams` tells how to quantize it.

    Besides the extremes of the whole tensor it keeps the largest value per channel (axis 1 of tensors with more
    than two axes, else the last), which bounds the integers that meet one weight.

    Attributes:
        label: what is observed, for messages.
        symmetric: place the zero point in the middle of the integers.
    """

    def __init__(self, label: str, symmetric: bool = False) -> None:
        super().__init__()
        self.label, self.symmetric = label, symmetric
        self.enabled = True
        self.count = 0
        self.low, self.high = math.inf, -math.inf
        self.channel_high: Tensor | None = None
        self.dims = 0  # number of axes of what was seen

    def forward(self, x: Tensor) -> Tensor:
        """Observe ``x`` (any shape, fp32) and return it.

        Raises:
            CalibrationError: ``x`` holds NaN or inf.
        """
        if self.enabled and isinstance(x, Tensor) and x.numel():
            self.observe(x.detach())
        return x

    def observe(self, x: Tensor) -> None:
        """Take the values of ``x`` into the statistics."""
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
        """Take in what a subclass keeps beyond the extremes."""

    def _update_channels(self, x: Tensor) -> None:
        self.dims = x.dim()
        axis = 1 if x.dim() > 2 else x.dim() - 1
        top = x.amax([d for d in range(x.dim()) if d != axis]) if x.dim() > 1 else x.amax().reshape(1)
        self.channel_high = _highest(self.channel_high, top)

    def merge(self, other: Observer) -> None:
        """Take in what ``other``, of the same kind, has seen."""
        if type(self) is not type(other):
            raise TypeError(f"cannot merge {type(other).__name__} into {type(self).__name__}")
        self._merge(other)
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.count += other.count
        if other.channel_high is not None:
            self.channel_high = _highest(self.channel_high, other.channel_high)

    def _merge(self, other: Observer) -> None:
        """Merge what a subclass keeps; called before the extremes are merged."""

    def range(self) -> tuple[float, float]:
        """The range to represent."""
        return self.low, self.high

    def qparams(self, qmin: int = 0, qmax: int = 255) -> QParams:
        """Quantization parameters for what was seen.

        Raises:
            CalibrationError: nothing was seen.
        """
        if not self.count:
            raise CalibrationError(f"'{self.label}' was never reached during calibration.")
        return self.qparams_of(*self.range(), qmin, qmax)

    def qparams_of(self, low: float, high: float, qmin: int = 0, qmax: int = 255) -> QParams:
        """Parameters that cover ``[low, high]``, symmetric where the observer is."""
        return (symmetric_qparams if self.symmetric else affine_qparams)(low, high, qmin, qmax)

    def extra_repr(self) -> str:
        seen = f"[{self.low:.4g}, {self.high:.4g}], {self.count} batches" if self.count else "nothing seen"
        return f"{self.label}: {seen}"


def _highest(a: Tensor | None, b: Tensor) -> Tensor:
    """Elementwise maximum; of everything where the channels are not the same in number."""
    if a is None:
        return b
    return torch.maximum(a, b) if a.shape == b.shape else torch.maximum(a.amax(), b.amax()).reshape(1)


def joint_qparams(observers: Sequence[Observer]) -> QParams:
    """One set of qparams for values that are joined: those of an observer that saw all of them."""
    if len({type(o) for o in observers}) > 1:
        lows, highs = zip(*(o.range() for o in observers), strict=True)
        return observers[0].qparams_of(min(lows), max(highs))
    whole = copy.deepcopy(observers[0])
    for other in observers[1:]:
        whole.merge(other)
    return whole.qparams()


class MinMaxObserver(Observer):
    """The extremes of all values seen."""


class MovingAverageObserver(Observer):
    """Exponential moving average of the extremes of each batch.

    Merging gives the mean weighted by the number of batches: the order across two halves is not known.

    Attributes:
        momentum: weight of a new batch.
    """

    def __init__(self, label: str, symmetric: bool = False, momentum: float = 0.1) -> None:
        super().__init__(label, symmetric)
        self.momentum = momentum
        self.average = (0.0, 0.0)

    def _update(self, x: Tensor, low: float, high: float) -> None:
        weight = self.momentum if self.count else 1.0
        self.average = tuple(a + weight * (v - a) for a, v in zip(self.average, (low, high), strict=True))  # type: ignore[assignment]

    def _merge(self, other: Observer) -> None:
        assert isinstance(other, MovingAverageObserver)
        total = max(self.count + other.count, 1)
        self.average = tuple(  # type: ignore[assignment]
            (a * self.count + b * other.count) / total for a, b in zip(self.average, other.average, strict=True)
        )

    def range(self) -> tuple[float, float]:
        return self.average


class HistogramObserver(Observer):
    """A histogram of the values, and the range that ``choose`` takes from it."""

    choose: Choose = staticmethod(mse_range)

    def __init__(self, label: str, symmetric: bool = False) -> None:
        super().__init__(label, symmetric)
        self.histogram = Histogram()

    def _update(self, x: Tensor, low: float, high: float) -> None:
        self.histogram.add(x, max(abs(low), abs(high)))

    def _merge(self, other: Observer) -> None:
        assert isinstance(other, HistogramObserver)
        self.histogram.merge(other.histogram)

    def range(self) -> tuple[float, float]:
        return self.choose(self.histogram, self.low, self.high, self.symmetric)


class PercentileObserver(HistogramObserver):
    """The range that holds 99.99 % of the values."""

    choose = staticmethod(percentile_range)


class EntropyObserver(HistogramObserver):
    """The range whose quantized distribution has the least KL divergence from the one seen."""

    choose = staticmethod(entropy_range)


class MeasuredObserver(HistogramObserver):
    """The range of those in :data:`MEASURED_RANGES` that is best for the layers that read the value.

    Attributes:
        choose: set from outside by measuring. Until then that of least squared error.
    """

    def qparams_for(self, choose: Choose) -> QParams:
        """The qparams that ``choose`` would give."""
        return self.qparams_of(*choose(self.histogram, self.low, self.high, self.symmetric))


class FixedObserver(Observer):
    """Observes nothing: the range is known from the op (a sigmoid's is [0, 1])."""

    def __init__(self, label: str, known: QParams) -> None:
        super().__init__(label)
        self.known = known

    def qparams(self, qmin: int = 0, qmax: int = 255) -> QParams:
        return self.known


# What MeasuredObserver chooses from: no clipping, least squared error, and between the two.
MEASURED_RANGES: tuple[Choose, ...] = (mse_range, whole_range, percentile_range)

OBSERVER_CLASSES: dict[str, type[Observer]] = {
    "measured": MeasuredObserver,
    "histogram": HistogramObserver,
    "minmax": MinMaxObserver,
    "moving_average": MovingAverageObserver,
    "percentile": PercentileObserver,
    "entropy": EntropyObserver,
}


@contextlib.contextmanager
def observers_paused(module: nn.Module) -> Iterator[None]:
    """Within it the observers in ``module`` only pass values on."""
    running = [m for m in module.modules() if isinstance(m, Observer) and m.enabled]
    for observer in running:
        observer.enabled = False
    try:
        yield
    finally:
        for observer in running:
            observer.enabled = True


class QuantStub(nn.Module):
    """The border where an fp32 value enters an int8 region; observes it."""

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self.observer = observer

    def forward(self, x: Tensor) -> Tensor:
        """Observe ``x`` and return it."""
        return self.observer(x)


def observer_of(module: nn.Module | None) -> Observer | None:
    """The observer that ``module`` is, or has as a QuantStub; None for any other."""
    observer = module.observer if isinstance(module, QuantStub) else module
    return observer if isinstance(observer, Observer) else None


class DeQuantStub(nn.Module):
    """The border where a value leaves an int8 region; passes it through."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x
