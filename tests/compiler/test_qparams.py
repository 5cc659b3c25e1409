"""The scales and zero points of a range."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxquant.compiler.core.qparams import affine_qparams, symmetric_qparams

from .observer_toys import SMALLEST_SCALE, bounds


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
