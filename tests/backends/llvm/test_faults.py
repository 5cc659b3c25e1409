"""Models in which a wrong assumption about layouts, axes or numbers would show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant import QuantConfig

from ..x86.support import sqnr

CONV = QuantConfig(mixed_precision=False)


class Case(nn.Module):
    """`fn(self, x)` with two convolutions, a linear layer and norms at hand."""

    def __init__(self, fn: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.fn = fn
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.linear, self.rows = nn.Linear(8, 8), nn.LayerNorm(10)
        self.norm1, self.norm2 = nn.BatchNorm1d(8), nn.BatchNorm2d(8)
        for norm in (self.norm1, self.norm2):
            nn.init.uniform_(norm.weight, 0.5, 2.0)
            nn.init.normal_(norm.bias)
            norm.running_mean.normal_()  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Any:
        return self.fn(self, x)


CASES: dict[str, Callable[[Any, Tensor], Any]] = {
    "norm_after_mean": lambda m, x: m.linear(m.norm1(m.a(x).mean((2, 3)))),
    "norm_after_average": lambda m, x: m.b(m.norm2(F.avg_pool2d(m.a(x), 2))),
    "norm_over_rows": lambda m, x: m.norm1(m.linear(m.a(x)[:, :, :, :8].flatten(2).unflatten(2, (-1, 8))[:, :, 0])),
    "norm_of_other_axis": lambda m, x: m.norm1(m.linear(m.a(x)[:, :, 0, :8])),
    "shifted_view_of_padding": lambda m, x: m.b(F.pad(m.a(x), (0, 1, 0, 1))[:, :, 1:, 1:]),
    "constant_between_steps": lambda m, x: (m.a(x) + 0.0123).flatten(1),
    "negative_then_pool": lambda m, x: F.max_pool2d(m.a(x) * -1.0, 2),
    "zero_times": lambda m, x: (m.a(x) * 0.0 + 3.0).flatten(1),
    "floor_division": lambda m, x: torch.div(m.a(x), 0.3, rounding_mode="floor"),
    "index_tensor": lambda m, x: m.a(x)[torch.tensor([[1, 0]])],
    "uneven_factor": lambda m, x: m.b(F.interpolate(m.a(x)[:, :, :3, :3], scale_factor=2.3)),
    "norm_of_the_input": lambda m, x: (m.a(x), m.rows(x)),
    "softmax_of_a_view": lambda m, x: m.a(x).transpose(1, 3).softmax(-1),
    "twice_returned": lambda m, x: (lambda y: (y, y, x))(m.a(x)),
}


@pytest.mark.filterwarnings("ignore:.*:fxquant.FallbackWarning")
@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    torch.manual_seed(0)
    model = Case(CASES[name]).eval()
    data = [torch.randn(4, 3, 10, 10) for _ in range(3)]
    q = fxquant.compile(model, calibration=data, config=CONV, backend="llvm")
    with torch.no_grad():
        expected, program, actual = (f(data[0]) for f in (model, q.graph, q))
    if not isinstance(actual, tuple):
        expected, program, actual = (expected,), (program,), (actual,)
    for floats, theirs, ours in zip(expected, program, actual, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        if name != "floor_division":  # a step of rounding is a step of the floor
            assert ours.numel() == 0 or sqnr(theirs, ours) > 30
        assert ours.numel() == 0 or sqnr(floats, ours) > 15


def test_inference_mode_and_then_not() -> None:
    torch.manual_seed(0)
    q = fxquant.compile(nn.Sequential(nn.Conv2d(3, 4, 3)), calibration=[torch.randn(2, 3, 8, 8)], backend="llvm")
    x = torch.randn(1, 3, 9, 9)
    with torch.inference_mode():
        inside = q(x)
    assert torch.equal(q(x), inside)


def test_another_default_device() -> None:
    torch.manual_seed(0)
    q = fxquant.compile(nn.Sequential(nn.Conv2d(3, 4, 3)), calibration=[torch.randn(2, 3, 8, 8)], backend="llvm")
    x = torch.randn(1, 3, 9, 9)
    expected = q(x)
    with torch.device("meta"):
        assert torch.equal(q(x), expected)
