"""Observers merge exactly, and find the ranges that they promise."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxquant.compiler.numerics.observer import Observer
from fxquant.compiler.numerics.observers import HistogramObserver
from fxquant.compiler.numerics.ranges import mse_range

from .observer_toys import MERGEABLE, NAMES, observed, squared_error, tensors


def check_merge(name: str, first: list[Tensor], second: list[Tensor]) -> None:
    merged, whole = observed(name, *first), observed(name, *first, *second)
    merged.merge(observed(name, *second))
    assert (merged.low, merged.high, merged.count) == (whole.low, whole.high, whole.count)
    assert merged.range() == whole.range()
    assert merged.qparams() == whole.qparams()
    assert (merged.channel_high is None) == (whole.channel_high is None)
    if merged.channel_high is not None and whole.channel_high is not None:
        assert torch.equal(merged.channel_high, whole.channel_high)
    if isinstance(merged, HistogramObserver) and isinstance(whole, HistogramObserver):
        assert merged.histogram.exponent == whole.histogram.exponent
        assert torch.equal(merged.histogram.counts, whole.histogram.counts)


@pytest.mark.parametrize("name", MERGEABLE)
@given(first=st.lists(tensors(), min_size=1, max_size=3), second=st.lists(tensors(), max_size=3))
def test_merged_halves_are_the_whole(name: str, first: list[Tensor], second: list[Tensor]) -> None:
    check_merge(name, first, second)


@pytest.mark.parametrize("name", MERGEABLE)
def test_merging_into_an_empty_observer(name: str) -> None:
    x = torch.randn(3, 4)
    empty = observed(name)
    empty.merge(observed(name, x))
    assert empty.qparams() == observed(name, x).qparams()


@pytest.mark.parametrize("name", MERGEABLE)
@pytest.mark.parametrize("quiet", [torch.zeros(2, 3), torch.full((2, 3), 1e-38), torch.tensor([[1e-40, 0.0]])])
def test_merging_with_a_silent_half(name: str, quiet: Tensor) -> None:
    loud = torch.randn(2, 3).relu()
    check_merge(name, [quiet], [loud])
    check_merge(name, [loud], [quiet])


@pytest.mark.parametrize("quiet", [torch.zeros(50), torch.full((50,), 1e-37), torch.full((50,), 1e-40)])
def test_histogram_holds_tiny_values_where_they_are(quiet: Tensor) -> None:
    """Zeros of a dead ReLU are counted at zero, whatever came before."""
    observer = observed("histogram", quiet, torch.ones(1))
    assert isinstance(observer, HistogramObserver)
    histogram = observer.histogram
    negative = histogram.counts[histogram.centers() < 0]
    assert float(negative.sum()) == 0
    assert float(histogram.counts.sum()) == 51


@pytest.mark.parametrize("name", NAMES)
@given(data=st.lists(tensors(), min_size=1, max_size=3), symmetric=st.booleans())
def test_range_is_within_what_was_seen(name: str, data: list[Tensor], symmetric: bool) -> None:
    observer = observed(name, *data, symmetric=symmetric)
    low, high = observer.range()
    least, most = min(float(x.min()) for x in data), max(float(x.max()) for x in data)
    if symmetric and name in ("histogram", "measured", "percentile"):
        least, most = -max(abs(least), abs(most)), max(abs(least), abs(most))
    slack = 1e-6 * max(abs(least), abs(most))
    assert low <= high
    assert min(least, 0) - slack <= low
    assert high <= max(most, 0) + slack


@given(data=st.lists(tensors(), min_size=1, max_size=4))
def test_minmax_is_exact(data: list[Tensor]) -> None:
    whole = torch.cat([x.flatten() for x in data])
    assert observed("minmax", *data).range() == (float(whole.min()), float(whole.max()))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("symmetric", [False, True])
def test_histogram_beats_minmax_on_heavy_tails(seed: int, symmetric: bool) -> None:
    torch.manual_seed(seed)
    x = torch.distributions.StudentT(torch.tensor(3.0)).sample((20000,))
    by_mse = observed("histogram", x, symmetric=symmetric).qparams()
    by_extremes = observed("minmax", x, symmetric=symmetric).qparams()
    assert squared_error(x, by_mse) < squared_error(x, by_extremes)


@given(data=tensors())
def test_histogram_is_hardly_worse_than_minmax(data: Tensor) -> None:
    """It chooses by bins, so that a value may lie half a bin from where it is thought."""
    by_mse, by_extremes = observed("histogram", data).qparams(), observed("minmax", data).qparams()
    step = max(by_extremes.scale, by_mse.scale)
    assert squared_error(data, by_mse) <= squared_error(data, by_extremes) + data.numel() * step**2 / 4 + 1e-12


def test_mse_range_of_an_outlier_clips_it() -> None:
    x = torch.cat([torch.randn(1000000), torch.tensor([30.0])])
    observer = observed("histogram", x)
    assert isinstance(observer, HistogramObserver)
    low, high = mse_range(observer.histogram, observer.low, observer.high)
    assert -6 < low < -2
    assert high < 20


def test_percentile_leaves_out_the_tails() -> None:
    x = torch.cat([torch.randn(100000), torch.tensor([40.0, -40.0])])
    low, high = observed("percentile", x).range()
    inner = observed("histogram", x).range()
    assert low < 0 < high and (low, high) == inner, "the range of least error is wider than the percentile here"
    low, high = observed("percentile", torch.randn(100000)).range()
    assert -5 < low < -3 and 3 < high < 5


def test_entropy_clips_an_outlier_and_keeps_a_uniform() -> None:
    low, high = observed("entropy", torch.cat([torch.randn(100000), torch.tensor([60.0])])).range()
    assert high < 60 and low < -2
    low, high = observed("entropy", torch.linspace(-1, 1, 100001)).range()
    assert low < -0.9 and high > 0.9


def test_moving_average() -> None:
    observer = observed("moving_average", torch.tensor([0.0, 1.0]), torch.tensor([-1.0, 2.0]))
    assert observer.range() == pytest.approx((-0.1, 1.1))


def test_moving_average_merges_by_number_of_batches() -> None:
    one = observed("moving_average", torch.tensor([0.0, 3.0]))
    one.merge(observed("moving_average", torch.tensor([0.0, 6.0]), torch.tensor([0.0, 6.0])))
    assert one.range() == pytest.approx((0.0, 5.0))


def test_names_are_taken_once() -> None:
    with pytest.raises(ValueError, match="named 'minmax' already: MinMaxObserver"):
        type("Second", (Observer,), {}, name="minmax")


@pytest.mark.parametrize("found", [(3.0, -3.0), (0.0, math.inf), (math.nan, 1.0)])
def test_a_range_that_is_none_is_refused(found: tuple[float, float]) -> None:
    observer = type("Odd", (Observer,), {"range": lambda self: found})("value")
    observer(torch.ones(3))
    with pytest.raises(ValueError, match=r"Odd.range\(\) returned"):
        observer.qparams()


def test_statistics_that_cannot_be_merged_are_refused() -> None:
    kind = type("Sums", (Observer,), {"_update": lambda self, x, low, high: None})
    with pytest.raises(NotImplementedError, match="Sums has statistics of its own"):
        kind("value").merge(kind("value"))
