"""Ops stay in fp32 where int8 is slower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import QuantConfig
from fxquant.backends.base.backend import Latencies
from fxquant.backends.base.program import FrozenProgram
from fxquant.backends.llvm import LLVMBackend
from fxquant.compiler.numerics.metrics import decibels, sqnr
from fxquant.compiler.workflows import mixed_precision
from fxquant.passes.analysis import slower_ops
from tests.compiler.toys import images

from .models import PLAIN, row_of, ruinous


class TwoBranches(nn.Module):
    """A convolution, then another with ReLU and pool beside a third, and their sum: [N,3,8,8] -> [N,4,4,4]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.slow = nn.Conv2d(4, 4, 3, padding=1)
        self.fast = nn.Conv2d(4, 4, 3, 2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        pooled = nn.functional.max_pool2d(torch.relu(self.slow(x)), 2)
        return pooled + self.fast(x)


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[float, float]]:
    """Milliseconds in (int8, fp32) by the op's name; 1 and 2 where nothing is said, and 0.1 for each border."""
    given: dict[str, tuple[float, float]] = {}

    def latencies(self: LLVMBackend, program: FrozenProgram) -> Latencies:
        names = [n.name for n in program.module.graph.nodes]
        int8, fp32 = ({n: given.get(n, (1.0, 2.0))[i] for n in names} for i in (0, 1))
        return Latencies(int8, fp32, dict.fromkeys(names, 0.1), dict.fromkeys(names, 0.1), {})

    monkeypatch.setattr(LLVMBackend, "latencies", latencies)
    monkeypatch.setattr(slower_ops, "LEAST_GAIN", (0.02, 0.05))
    return given


def compiled(config: QuantConfig | None = None) -> Mapping[str, fxquant.Row]:
    torch.manual_seed(0)
    return row_of(fxquant.compile(TwoBranches().eval(), calibration=[images(4) for _ in range(2)], config=config))


@pytest.mark.parametrize("costs_accuracy", [False, True])
def test_what_is_slower_stays_in_int8_where_the_output_is_ruined_without_it(
    costs_accuracy: bool, times: dict[str, tuple[float, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = mixed_precision._Choice
    measured = choice._try

    def trial(self: Any, fp32: Any) -> float:
        return 5.0 if costs_accuracy and "_0" in fp32 else measured(self, fp32)

    times["_0"] = (9.0, 1.0)
    monkeypatch.setattr(choice, "_try", trial)
    rows = row_of(fxquant.compile(ruinous(), calibration=[images(8) for _ in range(3)], config=QuantConfig(**PLAIN)))
    assert "ruin" in rows["4"].reason and rows["2"].precision == "int8"
    assert rows["0"].precision == ("int8" if costs_accuracy else "fp32")


def test_an_op_that_is_slower_in_int8_stays_in_fp32_with_what_it_passes_through(
    times: dict[str, tuple[float, float]],
) -> None:
    assert {row.precision for row in compiled().values()} == {"int8"}
    times |= {"slow": (4.0, 1.0), "max_pool2d": (0.1, 0.1)}
    rows = compiled()
    assert rows["slow"].precision == "fp32" and "would take 2.8 ms longer in int8" in rows["slow"].reason
    assert rows["max_pool2d"].precision == "fp32" and "its input is fp32" in rows["max_pool2d"].reason
    assert {rows[n].precision for n in ("stem", "fast")} == {"int8"}


@pytest.mark.parametrize("slow", [(1.1, 1.0), (1.25, 1.0)])
def test_int8_has_a_head_start_and_its_borders_count(
    times: dict[str, tuple[float, float]], slow: tuple[float, float]
) -> None:
    times["slow"] = slow  # two borders more, and a factor of 1.1, are against fp32
    assert compiled()["slow"].precision == "int8"


def test_an_override_keeps_a_slow_op_in_int8(times: dict[str, tuple[float, float]]) -> None:
    times["slow"] = (9.0, 1.0)
    assert compiled(QuantConfig(overrides={"slow": QuantConfig()}))["slow"].precision == "int8"
    assert compiled(QuantConfig(mixed_precision=False))["slow"].precision == "int8"


def test_a_model_that_is_slower_in_int8_throughout_runs_in_fp32(times: dict[str, tuple[float, float]]) -> None:
    times |= dict.fromkeys(("stem", "slow", "fast", "add", "max_pool2d"), (3.0, 1.0))
    rows = compiled()
    assert {row.precision for row in rows.values()} == {"fp32"} and all(row.reason for row in rows.values())


def test_a_gain_that_is_next_to_nothing_changes_nothing(
    times: dict[str, tuple[float, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    times["slow"] = (4.0, 1.0)
    monkeypatch.setattr(slower_ops, "LEAST_GAIN", (0.02, 5.0))
    assert compiled()["slow"].precision == "int8"


class Skips(nn.Module):
    """A sum whose other summand dwarfs it: [N,3,8,8] -> [N,4,8,8]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.last(self.conv(y) + y)


@pytest.mark.parametrize("overrides", [{}, {"conv": QuantConfig()}])
def test_an_op_that_is_ruined_is_no_longer_fused(overrides: dict[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum would be fused into the convolution, which must not keep it from being left out."""

    def latencies(self: LLVMBackend, program: FrozenProgram) -> Latencies:
        names = [n.name for n in program.module.graph.nodes]
        times = dict.fromkeys(names, 1.0)
        return Latencies(times, times, times, times, {"add": "conv"})

    def ruinous_sum(gm: Any, exact: Any, assignment: Any, free: Any, batch: Any) -> Any:
        return [(3.0, u.root.name) for u in free if u.root.name == "add"]

    monkeypatch.setattr(LLVMBackend, "latencies", latencies)
    monkeypatch.setattr(mixed_precision, "sqnr_of_each", ruinous_sum)
    monkeypatch.setattr(mixed_precision, "output_sqnr", lambda gm, exact, batch: 0.0)
    q = fxquant.compile(
        Skips().eval(), calibration=[images(4) for _ in range(2)], config=QuantConfig(overrides=overrides)
    )
    rows = row_of(q)
    assert "ruin" in rows[":add" if ":add" in rows else "add"].reason
    assert {rows[n].precision for n in ("stem", "conv", "last")} == {"int8"}


def test_noise_without_end_is_told_from_none() -> None:
    assert decibels(1.0, float("inf")) == decibels(1.0, float("nan")) == -float("inf") and decibels(1.0, 0.0) > 0


class Halves(nn.Module):
    """A tensor in two halves, one of which passes a convolution: [N,3,8,8] -> [N,8,8,8]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, 1)
        y: Tensor = self.last(torch.cat([a, self.conv(b)], 1))
        return y


@pytest.mark.parametrize("slow", [("conv",), ("conv", "cat"), ("last",), ("stem",), ("conv", "last"), ("cat",)])
def test_the_parts_of_a_tensor_are_of_one_precision(
    slow: tuple[str, ...], times: dict[str, tuple[float, float]]
) -> None:
    times |= dict.fromkeys(slow, (9.0, 1.0)) | {"getitem": (1.0, 0.5), "getitem_1": (1.0, 0.9)}
    torch.manual_seed(0)
    model, batches = Halves().eval(), [images(8) for _ in range(2)]
    q = fxquant.compile(model, calibration=batches)
    kinds = {row.precision for row in q.report.rows if row.op in ("chunk", "getitem")}
    assert len(kinds) == 1
    with torch.no_grad():
        assert sqnr([model(batches[0])], [q(batches[0])]) > 20
