"""An op that was left in fp32 between int8 ones runs in fp32."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxquant import QuantConfig

from .support import compiled, oracle, seeded

ISLANDS = {
    "conv": lambda: nn.Conv2d(8, 8, 3, padding=1),
    "max_pool": lambda: nn.MaxPool2d(2),
    "sigmoid": nn.Sigmoid,
    "hardswish": nn.Hardswish,
    "batch_norm": lambda: nn.Sequential(nn.MaxPool2d(2), nn.BatchNorm2d(8)),
}


@pytest.mark.parametrize("island", ISLANDS)
def test_override_to_fp32(island: str) -> None:
    model = seeded(lambda: nn.Sequential(nn.Conv2d(8, 8, 3), ISLANDS[island](), nn.Conv2d(8, 8, 3)))
    data = [seeded(lambda: (torch.randn(2, 8, 10, 10),), s) for s in (1, 2)]
    q = compiled(model, data, config=QuantConfig(overrides={"1": None}))
    for row in q.report.rows[1:-1]:
        assert row.precision == "fp32" and "override" in row.reason
    assert all(row.op == "conv2d" or row.precision == "fp32" for row in q.report.rows)
    assert torch.isfinite(q(*data[0])).all() and oracle(q, *data[0]).shape == q(*data[0]).shape


def test_a_transposed_convolution_called_with_a_size_gives_that_size() -> None:
    class Upscaling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Conv2d(3, 8, 3, 2, 1), nn.ConvTranspose2d(8, 4, 3, 2, 1)
            self.last = nn.Conv2d(4, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.last(self.up(self.down(x), output_size=x.shape[-2:]))
            return result

    model, x = seeded(Upscaling).eval(), torch.randn(2, 3, 8, 8)
    q = compiled(model, [(x,)])
    assert q(x).shape == model(x).shape
    assert "called with an output size" in {row.node: row for row in q.report.rows}["up"].reason
