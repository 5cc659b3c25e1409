"""The kinds of observers: how each finds the range of an activation."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..core.qparams import QParams
from .histogram import Histogram
from .observer import Observer
from .ranges import entropy_range, mse_range, percentile_range, whole_range

Choose = Callable[[Histogram, float, float, bool], tuple[float, float]]


class MinMaxObserver(Observer, name="minmax"):
    """The range is the extremes of all values seen."""


class MovingAverageObserver(Observer, name="moving_average"):
    """The range is an exponential moving average of the extremes of each batch.

    Merging takes the mean, weighted by the number of batches, as the order of the batches is not known.

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


class HistogramObserver(Observer, name="histogram"):
    """The range of least squared quantization error, from a histogram of the values."""

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


class PercentileObserver(HistogramObserver, name="percentile"):
    """The range holds 99.99 % of the values, and at least the range of least squared error."""

    choose = staticmethod(percentile_range)


class EntropyObserver(HistogramObserver, name="entropy"):
    """The range whose quantized distribution has the least KL divergence from the observed one."""

    choose = staticmethod(entropy_range)


class MeasuredObserver(HistogramObserver, name="measured"):
    """The range of :data:`MEASURED_RANGES` that gives the least error at the layers that read the value.

    Attributes:
        settled: whether the range was chosen (:mod:`fxquant.passes.quantization.choose_ranges`); until then it is that
            of least squared error.
    """

    settled = False

    def settle_on(self, choose: Choose) -> None:
        """Use the range that ``choose`` gives from now on."""
        self.choose = choose
        self.settled = True

    def qparams_for(self, choose: Choose) -> QParams:
        """The qparams for the range that ``choose`` gives."""
        return self.qparams_of(*choose(self.histogram, self.low, self.high, self.symmetric))


class FixedObserver(Observer):
    """Observes nothing: the range is known from the op (that of a sigmoid is [0, 1])."""

    def __init__(self, label: str, known: QParams) -> None:
        super().__init__(label)
        self.known = known

    def qparams(self, qmin: int = 0, qmax: int = 255) -> QParams:
        return self.known


# What MeasuredObserver chooses from.
MEASURED_RANGES: tuple[Choose, ...] = (mse_range, whole_range, percentile_range)

OBSERVER_CLASSES = Observer.named
