"""The first convolution in fp32: where it is taken, and what it computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxquant
from fxquant.backends.x86 import fuse


def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()


def test_entry_in_fp32_reads_the_unrounded_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuse, "ENTRY_SHARE", 1e9)
    net, x = model(), torch.randn(2, 3, 12, 12)
    q = fxquant.compile(net, calibration=[x])
    first, second = q.report.rows
    assert first.precision == "fp32" and "measured" in first.reason
    assert second.precision == "int8"
    # The same frozen graph in plain torch ops: one rounding behind each of the two convolutions.
    assert second.qparams is not None
    assert (q(x) - q.graph(x)).abs().max() <= 1.01 * second.qparams.scale
    assert q(x[:1]).shape == (1, 4, 12, 12)


def test_entry_stays_int8_where_fp32_costs_too_much() -> None:
    q = fxquant.compile(model(), calibration=[torch.randn(2, 3, 12, 12)])
    assert [row.precision for row in q.report.rows] == ["int8", "int8"]
