"""The tuner: its cache file, the form in which it measures, and that it rejects kernels whose results are wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

import fxquant
from fxquant import QuantConfig
from fxquant.backends.x86.bindings import table
from fxquant.backends.x86.kernels.calls import Candidate, Int8Call
from fxquant.backends.x86.kernels.convolution import conv
from fxquant.backends.x86.runtime.engine import available
from fxquant.backends.x86.tuning import race, tuner
from fxquant.compiler.execution.timing import Timing, interleaved_times

from .support import compiled, oracle, output_step, seeded


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FXQUANT_CACHE", str(tmp_path))
    return tmp_path / "kernels.json"


def compile_one() -> Any:
    model = seeded(lambda: nn.Sequential(nn.Conv2d(8, 8, 3)))
    measured = QuantConfig(deterministic=False, mixed_precision=False)
    return compiled(model, [seeded(lambda: (torch.randn(2, 8, 9, 9),))], config=measured)


@pytest.mark.skipif(len(available()) < 2, reason="with one engine there is nothing to measure")
def test_cache_is_written_and_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_one()
    content = cache.read_text()
    times = json.loads(content)
    assert times and all(isinstance(t, float) for row in times.values() for t in row.values())

    def no_measuring(*_: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(tuner, "race", no_measuring)
    compile_one()
    assert cache.read_text() == content
    assert not list(cache.parent.glob("*.tmp"))


@pytest.mark.skipif(len(available()) < 2, reason="with one engine there is nothing to measure")
def test_cached_times_decide(cache: Path) -> None:
    compile_one()
    times = json.loads(cache.read_text())
    for key, row in times.items():
        if "'entry " in key or " or fp32" in key or "'border'" in key:
            continue  # decide what runs in fp32, which is off here
        for slowest in row:
            cache.write_text(json.dumps({k: {n: 1.0 + (n != slowest) for n in r} for k, r in times.items()}))
            assert compile_one().report.rows[0].kernel == slowest


@pytest.mark.parametrize("content", ("", "{", "[1, 2]", "null", '{"a": 1}', "\x00\x01"))
def test_corrupt_cache_is_ignored(cache: Path, content: str) -> None:
    cache.write_text(content)
    assert compile_one().report.counts == {"int8": 1}


def test_corrupt_entries_are_ignored(cache: Path) -> None:
    compile_one()
    times = json.loads(cache.read_text())
    cache.write_text(json.dumps(dict.fromkeys(times, 1)))
    assert compile_one().report.counts == {"int8": 1}
    cache.write_text(json.dumps({key: dict.fromkeys(row, "fast") for key, row in times.items()}))
    assert compile_one().report.counts == {"int8": 1}


def test_binary_cache_is_ignored(cache: Path) -> None:
    cache.write_bytes(b"\xff\xfe\x80")
    assert compile_one().report.counts == {"int8": 1}


def test_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FXQUANT_CACHE", str(tmp_path / "file" / "folder"))
    assert compile_one().report.counts == {"int8": 1}


@pytest.mark.skipif(len(available()) < 2, reason="with one engine there is nothing to measure")
def test_kernels_are_measured_in_the_form_in_which_they_run(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[object] = []

    def refused(emitter: object, inputs: object) -> Any:
        traced.append(emitter)
        raise RuntimeError("no TorchScript in this torch")

    monkeypatch.setattr(race, "trace", refused)
    model = seeded(lambda: nn.Sequential(nn.Conv2d(8, 8, 3)))
    data = [(seeded(lambda: torch.randn(2, 8, 9, 9)),)]
    measured = QuantConfig(deterministic=False, mixed_precision=False)
    fxquant.compile(model, calibration=data, config=measured, executor="eager")
    assert cache.exists() and not traced
    assert fxquant.compile(model, calibration=data, config=measured, backend="x86").report.counts == {"int8": 1}
    assert traced  # eager times do not stand for those of TorchScript


@pytest.mark.usefixtures("cache")
def test_wrong_kernel_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that is off by more than a rounding, and faster than all others, is not taken."""
    binding = table.BINDINGS["conv2d"]

    def with_wrong(call: Int8Call) -> list[Candidate]:
        def build(emitter: Any, inputs: Any) -> Any:
            right = conv(2)(call)[0].build(emitter, inputs)
            return emitter.call(torch.ops.aten.relu.default, right)

        return [Candidate("quantized::wrong", build), *conv(2)(call)]

    def wrong_is_fastest(runs: Any, *args: Any, **kwargs: Any) -> Timing:
        timing = interleaved_times(runs, *args, **kwargs)
        calling, _, *others = timing.medians
        return replace(timing, medians=[calling, 1e-9, *others])

    monkeypatch.setitem(cast(dict[str, Any], table.BINDINGS), "conv2d", replace(binding, kernels=with_wrong))
    monkeypatch.setattr(race, "interleaved_times", wrong_is_fastest)
    q = compile_one()
    assert q.report.rows[0].kernel != "quantized::wrong"
    x = seeded(lambda: torch.randn(2, 8, 9, 9))
    step = output_step(q)
    assert step is not None and (q(x) - oracle(q, x)).abs().max() <= 1.01 * step
