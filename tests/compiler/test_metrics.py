"""Noise of outputs that are several tensors."""

from __future__ import annotations

import pytest
import torch

from fxquant.compiler.numerics.metrics import relative_noise, surely_nearer


def test_the_mean_is_no_signal() -> None:
    x = torch.randn(100, generator=torch.Generator().manual_seed(0))
    noise = 0.1 * torch.randn(100, generator=torch.Generator().manual_seed(1))
    expected = float(noise.square().sum() / (x - x.mean()).square().sum())
    for offset in (0.0, 10.0):
        assert relative_noise(x + offset, x + offset + noise) == pytest.approx(expected, rel=1e-3)
    assert relative_noise((x, 100 * x), (x + noise, 100 * x)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    "constant", [torch.tensor(3.0), torch.full((5,), 3.0), torch.zeros(4), torch.arange(4)], ids=str
)
def test_a_constant_does_not_decide(constant: torch.Tensor) -> None:
    """Of a scalar, its value is the signal; zeros and integers say nothing."""
    x = torch.randn(100, generator=torch.Generator().manual_seed(0))
    exact, other = (x, constant), (x + 0.1, constant + 1e-6 if constant.is_floating_point() else constant)
    assert relative_noise(exact, other) == pytest.approx(relative_noise(x, x + 0.1), rel=1e-3)


def test_a_gain_in_most_items_and_a_loss_in_all() -> None:
    exact = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    before = exact + 0.1
    after = exact + 0.05
    assert surely_nearer([exact], [before], [after])
    after[0] += 10
    assert not surely_nearer([exact], [before], [after])
