"""Observers and ranges: properties over arbitrary data."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fxquant
from fxquant import CalibrationError
from fxquant.compiler.core.qparams import QParams, affine_qparams, symmetric_qparams
from fxquant.compiler.numerics.observer import Observer, joint_qparams
from fxquant.compiler.numerics.observers import OBSERVER_CLASSES, FixedObserver, HistogramObserver, MinMaxObserver
from fxquant.compiler.numerics.ranges import mse_range

MERGEABLE = ["histogram", "minmax", "percentile", "entropy"]
NAMES = list(OBSERVER_CLASSES)

values = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
bounds = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
SMALLEST_SCALE = 2.0**-116  # below it, every scale does


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Gaussian data of some shape, scale and offset, with a few arbitrary values among them."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    shape = draw(st.sampled_from([(40,), (4, 10), (2, 3, 5), (2, 3, 4, 4)]))
    x = torch.randn(shape, generator=generator) * 10.0 ** draw(st.integers(-6, 6)) + draw(values)
    extra = torch.tensor(draw(st.lists(values, max_size=5)))
    x.view(-1)[: len(extra)] = extra
    return x


def observed(name: str, *data: Tensor, symmetric: bool = False) -> Observer:
    observer = OBSERVER_CLASSES[name]("value", symmetric)
    for x in data:
        observer(x)
    return observer


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


def squared_error(x: Tensor, known: QParams) -> float:
    steps = (x.double() / known.scale).round() + known.zero_point
    back = (steps.clamp(known.qmin, known.qmax) - known.zero_point) * known.scale
    return float((back - x.double()).square().sum())


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


@given(low=bounds, high=bounds)
def test_affine_qparams_hold_zero_and_cover_the_range(low: float, high: float) -> None:
    low, high = min(low, high), max(low, high)
    known = affine_qparams(low, high)
    assert known.qmin <= known.zero_point <= known.qmax
    assert isinstance(known.zero_point, int)
    assert known.scale > 0 and known.scale == float(torch.tensor(known.scale)), "an fp32 number"
    assert known.scale * (known.zero_point - known.zero_point) == 0.0
    half = known.scale * 0.5001
    assert known.low <= min(low, 0) + half
    assert known.high >= max(high, 0) - half
    if max(high, 0) - min(low, 0) > 255 * SMALLEST_SCALE:
        assert known.scale == pytest.approx((max(high, 0) - min(low, 0)) / 255, rel=1e-6)


@given(low=bounds, high=bounds)
def test_symmetric_qparams_have_zero_in_the_middle(low: float, high: float) -> None:
    low, high = min(low, high), max(low, high)
    known = symmetric_qparams(low, high)
    assert known.zero_point == 128
    bound = max(-low, high, 0.0)
    slack = 1e-6 * bound
    assert known.low <= -bound + slack and known.high >= bound - slack


@given(low=bounds, high=bounds, bits=st.integers(2, 8))
def test_qparams_of_narrower_integers(low: float, high: float, bits: int) -> None:
    low, high = min(low, high), max(low, high)
    known = affine_qparams(low, high, 0, 2**bits - 1)
    assert 0 <= known.zero_point < 2**bits
    assert known.low <= min(low, 0) + 0.5001 * known.scale
    assert known.high >= max(high, 0) - 0.5001 * known.scale


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_constant_zero_tensor(name: str, symmetric: bool) -> None:
    known = observed(name, torch.zeros(2, 3), symmetric=symmetric).qparams()
    assert math.isfinite(known.scale) and known.scale > 0
    assert known.low <= 0 <= known.high


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [5.0, -5.0, 1e-30, 1e30])
def test_a_constant_tensor(name: str, value: float) -> None:
    x = torch.full((10,), value)
    known = observed(name, x).qparams()
    assert squared_error(x, known) <= 10 * known.scale**2


@pytest.mark.parametrize("name", NAMES)
def test_an_observer_passes_its_input_through(name: str) -> None:
    x = torch.randn(2, 3)
    before = x.clone()
    assert observed(name)(x) is x
    assert torch.equal(x, before)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", NAMES)
def test_nan_and_inf_are_refused_by_name(name: str, bad: float) -> None:
    with pytest.raises(CalibrationError, match="NaN or inf in the output of 'value'"):
        observed(name, torch.tensor([1.0, bad]))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_seen(name: str) -> None:
    with pytest.raises(CalibrationError, match="'value' was never reached"):
        observed(name).qparams()
    with pytest.raises(CalibrationError, match="never reached"):
        observed(name, torch.zeros(0)).qparams()


def test_a_disabled_observer_sees_nothing() -> None:
    observer = observed("minmax")
    observer.enabled = False
    observer(torch.ones(3))
    assert observer.count == 0


def test_channel_high_is_the_largest_per_channel() -> None:
    x, y = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    both = torch.cat([x, y])
    found = observed("minmax", x, y).channel_high
    assert found is not None and torch.equal(found, both.amax((0, 2, 3)))


def test_different_kinds_do_not_merge() -> None:
    with pytest.raises(TypeError, match="cannot merge"):
        observed("minmax", torch.ones(1)).merge(observed("entropy", torch.ones(1)))


@pytest.mark.parametrize("name", MERGEABLE)
@given(first=tensors(), second=tensors())
def test_joint_qparams_are_those_of_one_observer(name: str, first: Tensor, second: Tensor) -> None:
    parts = [observed(name, first), observed(name, second)]
    assert joint_qparams(parts) == observed(name, first, second).qparams()


def test_joint_qparams_of_different_kinds_cover_both() -> None:
    parts = [observed("minmax", torch.tensor([-1.0, 2.0])), observed("percentile", torch.tensor([-3.0, 1.0]))]
    known = joint_qparams(parts)
    assert known.low <= -3 + known.scale and known.high >= 2 - known.scale


def test_joining_leaves_the_observers_alone() -> None:
    parts = [observed("minmax", torch.tensor([1.0])), observed("minmax", torch.tensor([9.0]))]
    joint_qparams(parts)
    assert parts[0].range() == (1.0, 1.0)


def test_fixed_observer_knows_its_qparams() -> None:
    known = QParams(1 / 256, 0)
    observer = FixedObserver("sigmoid", known)
    assert observer.qparams() == known
    observer(torch.full((3,), 100.0))
    assert observer.qparams() == known


def test_clamps_to_needs_the_bounds_at_the_ends() -> None:
    assert affine_qparams(0.0, 6.0).clamps_to(0.0, 6.0)
    assert affine_qparams(0.0, 6.0).clamps_to(0.0, math.inf)
    assert not affine_qparams(-1.0, 6.0).clamps_to(0.0, 6.0)
    assert not affine_qparams(0.0, 7.0).clamps_to(0.0, 6.0)


def test_printing_tells_what_was_seen() -> None:
    assert "nothing seen" in repr(MinMaxObserver("a"))
    assert "2 batches" in repr(observed("minmax", torch.ones(1), torch.ones(1)))


def percentile_of(x: Tensor) -> float:
    return float(x.sort().values[int(0.99995 * (x.numel() - 1)) - 10])


def test_the_percentile_keeps_outliers_that_matter() -> None:
    """A transformer's residual stream: one value in ten thousand is hundreds of times larger than the others."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200_000, generator=generator)
    x[::20_000] = 60 * 5  # fewer than the percentile would clip
    observer = observed("percentile", x)
    assert observer.high == 300.0 and observer.range()[1] > 250.0
    assert percentile_of(x) < 10.0, "what the plain percentile would have kept"


def test_measured_ranges_are_chosen_by_the_readers() -> None:
    """Rare large values that the next layer weighs heavily are kept, although the tensor's error would be less."""
    torch.manual_seed(0)
    x = torch.randn(64, 4096).abs()
    x[:, 0] = 30.0
    layer = torch.nn.Linear(4096, 2, bias=False)
    with torch.no_grad():
        layer.weight.mul_(0.01)
        layer.weight[:, 0] = 1.0
    errors = {}
    for name in ("histogram", "measured"):
        q = fxquant.compile(
            torch.nn.Sequential(layer).eval(), calibration=[x], backend="reference",
            config=fxquant.QuantConfig(observer=name, smooth=False, correct_bias=False),
        )  # fmt: skip
        errors[name] = float((q(x) - layer(x)).detach().square().mean())
    assert errors["measured"] <= errors["histogram"]
