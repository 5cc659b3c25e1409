"""Ops stay in fp32 where int8 ruins the output."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import QuantConfig
from fxquant.compiler.numerics.metrics import sqnr
from fxquant.passes.analysis.ruinous_ops import LEAST_SQNR
from tests.compiler.toys import images

from .models import PLAIN, row_of, ruinous


@pytest.mark.parametrize("backend", ["x86", "reference"])
def test_an_op_that_ruins_the_output_stays_in_fp32(backend: Any) -> None:
    model, batches = ruinous(), [images(8) for _ in range(3)]
    q = fxquant.compile(model, calibration=batches, config=QuantConfig(**PLAIN), backend=backend)
    rows = row_of(q)
    assert rows["4"].precision == "fp32" and "ruin the output: this op alone leaves" in rows["4"].reason
    assert {rows[n].precision for n in ("0", "2", "6")} == {"int8"}
    with torch.no_grad():
        exact, ours = ([m(x) for x in batches] for m in (model, q))
    assert sqnr(exact, ours) > LEAST_SQNR + 10


def deep(weight: float) -> nn.Sequential:
    """Six layers whose scales are as coarse as ``weight``, the weight of a channel that is always zero."""
    torch.manual_seed(0)
    convs = [nn.Conv2d(3 if i == 0 else 9, 9, 1) for i in range(7)]
    with torch.no_grad():
        for conv, following in itertools.pairwise(convs):
            conv.get_parameter("bias")[0] = -100.0
            conv.weight[0] = 0.0
            following.weight[:, 0] = weight
            following.weight[:, 1:, 0, 0] = 0.9 * torch.eye(9)[:, 1:] + 0.3 * torch.rand(9, 8)
    return nn.Sequential(*(layer for conv in convs for layer in (conv, nn.ReLU()))).eval()


@pytest.mark.parametrize("backend", ["x86", "reference"])
def test_as_many_of_the_worst_stay_in_fp32_as_ruin_the_output_together(backend: Any) -> None:
    """Six layers leave 11 to 16 dB each, and 4 dB in all."""
    model, batches = deep(60.0), [images(8) for _ in range(3)]

    def left(kept: Sequence[str], mixed: bool) -> tuple[float, dict[str, fxquant.Row]]:
        config = QuantConfig(**PLAIN, mixed_precision=mixed, overrides=dict.fromkeys(kept))
        q = fxquant.compile(model, calibration=batches, config=config, backend=backend)
        with torch.no_grad():
            return sqnr([model(batches[0])], [q(batches[0])]), row_of(q)

    decibels, rows = left([], True)
    ruinous = [n for n, row in rows.items() if "together with that in other ops: this op alone leaves" in row.reason]
    ranked = [row.node for row in fxquant.sensitivity(model, batches[:1], config=QuantConfig(**PLAIN)).ranked]
    assert 1 <= len(ruinous) <= 4 and {n for n, row in rows.items() if row.precision == "fp32"} == set(ruinous)
    assert decibels >= LEAST_SQNR and set(ruinous) == set(ranked[: len(ruinous)])
    assert left(ranked[: len(ruinous) - 1], False)[0] < LEAST_SQNR


def test_where_no_number_of_ops_in_fp32_is_enough_only_those_that_are_ruinous_alone_are() -> None:
    """Layers that an override wants in int8 ruin the output by themselves."""
    model, batches = deep(150.0), [images(8) for _ in range(3)]
    wanted: dict[Any, Any] = dict.fromkeys(("4", "6", "8", "10", "12"), QuantConfig(**PLAIN))
    q = fxquant.compile(model, calibration=batches, config=QuantConfig(**PLAIN, overrides=wanted))
    assert {n for n, row in row_of(q).items() if row.precision == "fp32"} == {"2"}
    assert "int8 ruins the output: " in q.report.remark and q.report.remark.endswith("dB on the first batch")


def test_the_report_tells_of_a_ruined_output_unless_learned_rounding_mends_it() -> None:
    """9 dB with two bits, 18 dB with learned rounding."""
    torch.manual_seed(0)
    model, batches = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 3)).eval(), [images(8)] * 2
    few = QuantConfig(**PLAIN, weight="per_tensor_symmetric", weight_bits=2)
    remark = fxquant.compile(model, calibration=batches, config=few).report.remark
    assert remark.startswith("int8 ruins the output: ")
    learned = fxquant.compile(model, calibration=batches, config=replace(few, rounding="learned", rounding_seconds=8.0))
    with torch.no_grad():
        decibels = sqnr([model(batches[0])], [learned(batches[0])])
    assert decibels > LEAST_SQNR + 5 and learned.report.remark == ""


@pytest.mark.parametrize("backend", ["x86", "reference"])
def test_what_bias_correction_mends_is_not_ruined(backend: Any) -> None:
    """4 dB without it, 17 with it."""
    model, batches = deep(60.0), [torch.rand(8, 3, 32, 32) for _ in range(3)]

    def left(corrects: bool) -> tuple[float, fxquant.Report]:
        config = QuantConfig(**{**PLAIN, "correct_bias": corrects})
        q = fxquant.compile(model, calibration=batches, config=config, backend=backend)
        with torch.no_grad():
            return sqnr([model(batches[0])], [q(batches[0])]), q.report

    assert left(False)[1].counts["fp32"] > 0
    decibels, report = left(True)
    assert decibels > LEAST_SQNR and report.counts == {"int8": 7} and report.remark == ""


class Difference(nn.Module):
    """What a network gives for two inputs: nothing where they are the same. [N,16], [N,16] -> [N,8]."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        difference: Tensor = self.net(x) - self.net(y)
        return difference


def test_an_output_of_zeros_tells_nothing() -> None:
    x = torch.randn(4, 16)
    data = [(x, x), (x, torch.randn(4, 16))]
    rows = row_of(fxquant.compile(Difference().eval(), calibration=data, config=QuantConfig(**PLAIN)))
    assert not any("ruin" in row.reason for row in rows.values())


def test_it_does_not_where_the_pass_is_off_or_an_override_speaks_of_the_op() -> None:
    model, batches = ruinous(), [images(8) for _ in range(3)]
    for config in (
        QuantConfig(**PLAIN, mixed_precision=False),
        QuantConfig(**PLAIN, overrides={"4": QuantConfig(**PLAIN)}),
    ):
        assert row_of(fxquant.compile(model, calibration=batches, config=config))["4"].precision == "int8"


def test_few_bits_are_a_choice_that_accuracy_does_not_overrule() -> None:
    model, batches = ruinous(), [images(8) for _ in range(3)]
    q = fxquant.compile(model, calibration=batches, config=QuantConfig(**PLAIN, weight_bits=2))
    assert q.report.counts["int8"] == 5
