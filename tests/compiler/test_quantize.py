"""The literal quantize and dequantize."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from fxquant.compiler.core.qparams import affine_qparams, symmetric_qparams
from fxquant.compiler.numerics.quantize import dequantize, dequantize_channels, quantize, quantize_channels

ends = st.floats(-1000, 1000, width=32)


@given(low=ends, high=ends, symmetric=st.booleans(), seed=st.integers(0, 100))
def test_round_trip_within_half_a_step(low: float, high: float, symmetric: bool, seed: int) -> None:
    low, high = min(low, high), max(low, high)
    known = (symmetric_qparams if symmetric else affine_qparams)(low, high)
    torch.manual_seed(seed)
    x = torch.rand(200) * (known.high - known.low) + known.low
    integers = quantize(x, known.scale, known.zero_point, known.qmin, known.qmax)
    assert integers.dtype == torch.uint8
    back = dequantize(integers, known.scale, known.zero_point)
    assert float((back - x).abs().max()) <= known.scale * 0.5001
    again = quantize(back, known.scale, known.zero_point, known.qmin, known.qmax)
    assert torch.equal(again, integers), "representable values stay"


@given(low=ends, high=ends)
def test_zero_stays_zero(low: float, high: float) -> None:
    known = affine_qparams(min(low, high), max(low, high))
    integers = quantize(torch.zeros(3), known.scale, known.zero_point, known.qmin, known.qmax)
    assert torch.equal(dequantize(integers, known.scale, known.zero_point), torch.zeros(3))


def test_values_outside_saturate() -> None:
    integers = quantize(torch.tensor([-1e9, 1e9]), 0.5, 100, 0, 255)
    assert integers.tolist() == [0, 255]
    integers = quantize(torch.tensor([-1e9, 1e9]), 0.5, 3, -7, 7)
    assert integers.tolist() == [-7, 7] and integers.dtype == torch.int8


def test_ties_go_to_even() -> None:
    assert quantize(torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5]), 1.0, 10, 0, 255).tolist() == [
        10,
        12,
        12,
        10,
        8,
    ]


@given(seed=st.integers(0, 100), axis=st.sampled_from([0, 1]))
def test_channels_are_quantized_each_with_its_own(seed: int, axis: int) -> None:
    torch.manual_seed(seed)
    w = torch.randn(4, 5, 3, 3) * torch.tensor([0.1, 1.0, 10.0, 100.0])[:, None, None, None]
    flat = w.movedim(axis, 0).flatten(1)
    scale = flat.abs().amax(1) / 127
    zero_point = torch.zeros_like(scale, dtype=torch.int64)
    integers = quantize_channels(w, scale, zero_point, axis, -127, 127)
    assert integers.dtype == torch.int8 and int(integers.abs().max()) == 127
    back = dequantize_channels(integers, scale, zero_point, axis)
    error = (back - w).movedim(axis, 0).flatten(1).abs().amax(1)
    assert bool((error <= 0.5001 * scale).all())


def test_one_scale_is_for_all_channels() -> None:
    w = torch.randn(4, 3)
    one, many = torch.tensor([0.02]), torch.full((4,), 0.02)
    zero = torch.zeros(1, dtype=torch.int64)
    a = quantize_channels(w, one, zero, 0, -127, 127)
    b = quantize_channels(w, many, zero.expand(4), 0, -127, 127)
    assert torch.equal(a, b)
    assert torch.equal(dequantize_channels(a, one, zero, 0), dequantize_channels(b, many, zero.expand(4), 0))
