"""Rounding with gradients: against the integers of the frozen graph, and against finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxquant import TrainingError
from fxquant.compiler.core.qparams import QParams, affine_qparams, symmetric_qparams
from fxquant.compiler.numerics.fake_quantize import MOMENTUM, FakeQuantize
from fxquant.compiler.numerics.quantize import along, dequantize_channels, quantize_channels, round_trip
from fxquant.compiler.numerics.straight_through import fake_quantize, fake_quantize_channels


@given(st.floats(-8, 0), st.floats(0.01, 8), st.integers(0, 2**31))
def test_forward_is_what_the_frozen_graph_does(low: float, high: float, seed: int) -> None:
    x = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(seed)) * 6
    known = affine_qparams(low, high)
    assert torch.equal(fake_quantize(x, known), round_trip(x, known))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
def test_forward_by_channels_is_what_the_frozen_graph_does(axis: int, channels_last: bool) -> None:
    w = torch.randn(4, 6, 3, 3)
    w = w.contiguous(memory_format=torch.channels_last) if channels_last else w
    scale, zero_point = torch.rand(w.shape[axis]) / 50 + 0.01, torch.arange(w.shape[axis]) - 2
    integers = quantize_channels(w, scale, zero_point, axis, -128, 127)
    expected = dequantize_channels(integers, scale, zero_point, axis)
    assert torch.equal(fake_quantize_channels(w, scale, zero_point, axis, -128, 127), expected)


def test_gradient_passes_within_the_range_only() -> None:
    known = QParams(0.5, 3, 0, 7)  # from -1.5 to 2; half a step more rounds to the ends
    x = torch.tensor([-9.0, -1.76, -1.74, -0.2, 0.0, 1.9, 2.24, 2.26, 40.0], requires_grad=True)
    fake_quantize(x, known).backward(torch.arange(1.0, 10.0))
    assert x.grad is not None and x.grad.tolist() == [0, 0, 3, 4, 5, 6, 7, 0, 0]


def surrogate(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """What has the gradients that fake quantization claims: rounding adds a constant, clamping stays."""
    steps = x / scale
    constant = (torch.round(steps) - steps).detach()
    inside = (torch.round(steps) + zero_point >= qmin) & (torch.round(steps) + zero_point <= qmax)
    ends = torch.where(steps > 0, qmax - zero_point, qmin - zero_point)
    return scale * torch.where(inside, steps + constant, ends)


def finite_difference(x: Tensor, theta: Tensor, scale: Tensor, zero_point: Tensor, bounds: tuple[int, int]) -> Tensor:
    """Derivative of the weighted sum of the surrogate by each theta, in double, the constants of rounding held."""
    weights = torch.linspace(-1, 2, x.numel(), dtype=torch.double).reshape(x.shape)
    base = scale.double()
    steps = x.double() / base
    constant = torch.round(steps) - steps
    rounded = torch.round(steps) + zero_point
    inside = (rounded >= bounds[0]) & (rounded <= bounds[1])
    ends = torch.where(steps > 0, bounds[1] - zero_point, bounds[0] - zero_point).double()

    def total(t: Tensor) -> Tensor:
        moved = base * t.exp()
        value = moved * torch.where(inside, x.double() / moved + constant, ends)
        return (value * weights).flatten(1).sum(1) if t.numel() > 1 else (value * weights).sum().reshape(1)

    h = 1e-6
    zero = torch.zeros(theta.shape, dtype=torch.double).reshape(-1, *[1] * (x.dim() - 1))
    return (total(zero + h) - total(zero - h)) / (2 * h)


@pytest.mark.parametrize("make", [affine_qparams, symmetric_qparams])
def test_gradient_of_a_learned_scale_is_that_of_finite_differences(make: object) -> None:
    x = torch.randn(5, 4, 3, requires_grad=True)
    known = make(-0.8, 1.1)  # type: ignore[operator]
    theta = torch.zeros((), requires_grad=True)
    weights = torch.linspace(-1, 2, x.numel()).reshape(x.shape)
    factor = 1e-5  # the gradient is clipped to 1
    (fake_quantize(x, known, theta) * weights * factor).sum().backward()
    scale = torch.tensor(known.scale)
    expected = finite_difference(x.detach(), theta, scale, torch.tensor(known.zero_point), (known.qmin, known.qmax))
    gain = 1 / (known.scale**2 * math.sqrt(x[0].numel() * known.qmax))
    assert theta.grad is not None
    assert torch.allclose(theta.grad.double(), expected * gain * factor, rtol=1e-3)
    again = x.detach().clone().requires_grad_()
    (
        surrogate(again, scale, torch.tensor(known.zero_point), known.qmin, known.qmax) * weights * factor
    ).sum().backward()
    assert x.grad is not None and again.grad is not None and torch.allclose(x.grad, again.grad, atol=1e-11)


def test_gradient_of_learned_scales_by_channel_is_that_of_finite_differences() -> None:
    w = torch.randn(4, 6, 3)
    scale, zero_point = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.zeros(4, dtype=torch.int64)
    theta = torch.zeros(4, requires_grad=True)
    weights = torch.linspace(-1, 2, w.numel()).reshape(w.shape)
    factor = 1e-2
    (fake_quantize_channels(w, scale, zero_point, 0, -7, 7, theta) * weights * factor).sum().backward()
    expected = finite_difference(w, theta, along(scale, w, 0), along(zero_point, w, 0), (-7, 7))
    assert theta.grad is not None
    assert torch.allclose(theta.grad.double(), expected * factor / (scale.double() ** 2 * math.sqrt(18 * 7)), rtol=1e-3)


def test_a_step_of_sgd_changes_a_learned_scale_relatively_as_in_lsq() -> None:
    """LSQ: s -= lr * g(N) * dL/ds, so relatively by lr * g(N) * dL/ds / s; dL/ds by autograd of the surrogate."""
    x, known = torch.randn(1, 64), affine_qparams(-1.0, 1.0)
    theta, scale = torch.zeros((), requires_grad=True), torch.tensor(known.scale, requires_grad=True)
    (fake_quantize(x, known, theta).square().sum() * 1e-5).backward()
    (surrogate(x, scale, torch.tensor(known.zero_point), 0, 255).square().sum() * 1e-5).backward()
    assert theta.grad is not None and scale.grad is not None
    assert theta.grad.item() == pytest.approx(scale.grad.item() / math.sqrt(64 * 255) / known.scale, rel=1e-3)


def test_no_step_changes_a_learned_scale_by_more_than_the_learning_rate_says() -> None:
    theta = torch.zeros((), requires_grad=True)
    (fake_quantize(torch.randn(1, 64), affine_qparams(-1.0, 1.0), theta) * 1e9).sum().backward()
    assert theta.grad is not None and abs(theta.grad.item()) == 1


def test_a_learned_scale_that_has_left_all_bounds_stops_the_training() -> None:
    for value in (math.nan, 1000.0, -1000.0):
        fake_quant = FakeQuantize("block_relu", affine_qparams(-1.0, 1.0))
        fake_quant.learn()
        assert fake_quant.theta is not None
        with torch.no_grad():
            fake_quant.theta.fill_(value)
        with pytest.raises(TrainingError, match="learned scale of 'block_relu'"):
            fake_quant(torch.randn(3))


def test_ranges_follow_in_training_only() -> None:
    fake_quant = FakeQuantize("x", affine_qparams(-1.0, 1.0))
    before = fake_quant.range.clone()
    x = torch.tensor([-5.0, 3.0])
    fake_quant.eval()(x)
    with torch.no_grad():
        fake_quant.train()(x)
    assert torch.equal(fake_quant.range, before)
    fake_quant(x)
    assert torch.allclose(fake_quant.range, before + MOMENTUM * (x - before))
    fake_quant.freeze()
    kept = fake_quant.range.clone()
    fake_quant(x)
    assert torch.equal(fake_quant.range, kept)


def test_joined_values_round_alike_over_the_union_of_their_ranges() -> None:
    a, b = FakeQuantize("a", affine_qparams(-1.0, 2.0)), FakeQuantize("b", affine_qparams(-3.0, 1.0))
    a.joined = b.joined = [a, b]
    assert a.qparams() == b.qparams()
    assert a.qparams().low == pytest.approx(-3, abs=0.02) and a.qparams().high == pytest.approx(2, abs=0.02)
    a.learn()
    assert a.theta is not None and b.theta is None
    x = torch.randn(9)
    (a(x).sum() + 2 * b(x).sum()).backward()
    assert a.theta.grad is not None
    with torch.no_grad():
        a.theta.fill_(0.5)
    assert a.qparams() == b.qparams()
    wide = a.qparams()
    for fake_quant in (a, b):
        fake_quant.freeze()
    with torch.no_grad():
        a.theta.fill_(-3)  # as momentum or weight decay would
    assert a.qparams() == b.qparams()
    assert a.qparams().scale == pytest.approx(wide.scale, rel=1e-5)


def test_nan_in_training_names_the_value() -> None:
    fake_quant = FakeQuantize("block_relu", affine_qparams(-1.0, 1.0)).train()
    with pytest.raises(TrainingError, match="NaN or inf in the output of 'block_relu'"):
        fake_quant(torch.tensor([1.0, math.nan]))
    assert torch.isfinite(fake_quant.range).all()


def test_nan_is_not_rounded_away() -> None:
    known = affine_qparams(-1.0, 1.0)
    assert torch.isnan(fake_quantize(torch.tensor([math.nan]), known)).all()
