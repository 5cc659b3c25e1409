"""Whole networks: they compile, verify, run at other batch sizes, and stay near fp32."""

from __future__ import annotations

import pytest
import torch

from ...models import batches, settled
from .support import compiled, sqnr

# Seen over random weights: 15 dB and more; 10 is far from what a wrong kernel anywhere would leave.
FLOOR = 10.0
SLOW = ("resnet50", "mobilenet_v2", "densenet")
QUICK = ("resnet18", "mobilenet_v3_large", "efficientnet_b0", "shufflenet_v2", "unet")


@pytest.mark.parametrize("name", (*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)))
def test_network(name: str) -> None:
    model = settled(name)
    size = 64 if name == "unet" else 96
    q = compiled(model, [tuple(x[..., :size, :size] for x in b) for b in batches(name, 1, 4)])
    assert all(row.reason for row in q.report.rows if row.precision == "fp32")
    assert q.report.counts["int8"] > q.report.counts.get("fp32", 0)
    for batch in (1, 8):
        (args,) = batches(name, 1, batch, seed=2)
        x = args[0][..., :size, :size]
        with torch.no_grad():
            expected = model(x)
        actual = q(x)
        assert actual.shape == expected.shape and torch.isfinite(actual).all()
        assert sqnr(expected, actual) > FLOOR
