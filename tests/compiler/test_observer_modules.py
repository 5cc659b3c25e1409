"""Observers as modules in a graph."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from torch import Tensor

import fxquant
from fxquant import CalibrationError
from fxquant.compiler.core.qparams import QParams, affine_qparams
from fxquant.compiler.numerics.observer import joint_qparams
from fxquant.compiler.numerics.observers import FixedObserver, MinMaxObserver

from .observer_toys import MERGEABLE, NAMES, observed, squared_error, tensors


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
    with pytest.raises(CalibrationError, match="'value' got no value during calibration"):
        observed(name).qparams()
    with pytest.raises(CalibrationError, match="got no value during calibration"):
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
