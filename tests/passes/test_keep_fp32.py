"""Ops that stay in fp32 without being asked: where int8 ruins the output, or is slower."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import QuantConfig
from fxquant.backends.base.backend import Latencies
from fxquant.backends.base.program import FrozenProgram
from fxquant.backends.x86 import X86Backend
from fxquant.backends.x86.lowering import fp32_entry
from fxquant.compiler.numerics.metrics import decibels, sqnr
from fxquant.compiler.workflows import mixed_precision
from fxquant.passes.analysis import slower_ops
from fxquant.passes.analysis.ruinous_ops import LEAST_SQNR

from ..compiler.toys import images

PLAIN: dict[str, Any] = dict.fromkeys(("equalize", "smooth", "absorb_bias", "correct_bias"), False)


@pytest.fixture(autouse=True)
def no_entry_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be decided by measured times."""
    monkeypatch.setattr(fp32_entry, "SHARE", -1e9)


def row_of(q: fxquant.QuantizedModule) -> dict[str, fxquant.Row]:
    return {row.node: row for row in q.report.rows}


def ruinous() -> nn.Sequential:
    """The weights of layer 4 are far apart within each of its output channels: int8 rounds most of them to zero."""
    layers = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Flatten())
    model = nn.Sequential(*layers, nn.Linear(128, 5)).eval()
    with torch.no_grad():
        model.get_parameter("2.bias")[0] = -100.0  # a channel that is always zero, but has the largest weights
        model.get_parameter("4.weight")[:, 0] = 1000.0
    return model


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
    learned = fxquant.compile(model, calibration=batches, config=replace(few, rounding="learned"))
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

    def latencies(self: X86Backend, program: FrozenProgram) -> Latencies:
        names = [n.name for n in program.module.graph.nodes]
        int8, fp32 = ({n: given.get(n, (1.0, 2.0))[i] for n in names} for i in (0, 1))
        return Latencies(int8, fp32, dict.fromkeys(names, 0.1), dict.fromkeys(names, 0.1), {})

    monkeypatch.setattr(X86Backend, "latencies", latencies)
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

    def latencies(self: X86Backend, program: FrozenProgram) -> Latencies:
        names = [n.name for n in program.module.graph.nodes]
        times = dict.fromkeys(names, 1.0)
        return Latencies(times, times, times, times, {"add": "conv"})

    def ruinous_sum(gm: Any, exact: Any, assignment: Any, free: Any, batch: Any) -> Any:
        return [(3.0, u.root.name) for u in free if u.root.name == "add"]

    monkeypatch.setattr(X86Backend, "latencies", latencies)
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
