"""The first ops in fp32: where that is taken, and what they compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxquant
from fxquant.backends.x86.lowering import fp32_entry


def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()


def test_entry_in_fp32_reads_the_unrounded_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp32_entry, "SHARE", 1e9)
    net, x = model(), torch.randn(2, 3, 12, 12)
    q = fxquant.compile(net, calibration=[x], backend="x86")
    first, second = q.report.rows
    for row in (first, second):
        assert row.precision == "fp32" and "not faster" in row.reason and row.kernel == "fp32 on unrounded inputs"
    # The same frozen graph in plain torch ops: one rounding, after the second convolution.
    assert second.qparams is not None
    assert (q(x) - q.graph(x)).abs().max() <= 1.01 * second.qparams.scale
    assert q(x[:1]).shape == (1, 4, 12, 12)


def test_entry_stays_int8_where_fp32_costs_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp32_entry, "SHARE", -1e9)
    q = fxquant.compile(model(), calibration=[torch.randn(2, 3, 12, 12)], backend="x86")
    assert [row.precision for row in q.report.rows] == ["int8", "int8"]


def test_an_fp32_op_reads_what_entered_unrounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the convolution gives is exact but for its weights: a rounding for the softmax would only cost time."""
    monkeypatch.setattr(fp32_entry, "SHARE", 1e9)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Softmax(1), nn.Conv2d(8, 4, 1)).eval()
    data = [torch.randn(2, 3, 12, 12)]
    entered = fxquant.compile(
        net, calibration=data, config=fxquant.QuantConfig(overrides={"2": None}), backend="x86"
    ).report.rows[0]
    assert entered.kernel == "fp32 on unrounded inputs" and entered.qparams is None


class Branches(nn.Module):
    """What enters in fp32 is read twice: by an op that enters, too, and by a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.hardswish(self.stem(x))
        out: torch.Tensor = self.last(x + self.body(x).relu())
        return out


@pytest.mark.parametrize("executor", ("eager", "torchscript"))
def test_ops_enter_as_long_as_time_is_left(monkeypatch: pytest.MonkeyPatch, executor: Any) -> None:
    monkeypatch.setattr(fp32_entry, "SHARE", 1e9)
    net, x = Branches().eval(), torch.randn(2, 3, 12, 12)
    q = fxquant.compile(net, calibration=[x], executor=executor)
    assert [row.precision for row in q.report.rows] == ["fp32"] * 5
    last = q.report.rows[-1].qparams
    assert last is not None
    assert (q(x) - q.graph(x)).abs().max() <= 1.01 * last.scale
    # All that is left of the rounding of activations is the last; weights are int8.
    weights_only = net(x) - q(x)
    assert weights_only.abs().max() < 0.05 * net(x).abs().max()
