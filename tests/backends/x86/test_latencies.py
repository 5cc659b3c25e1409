"""Measured latencies: of every int8 op, and of every value that may be converted."""

from __future__ import annotations

import math

import pytest
import torch

import fxquant
from fxquant.backends.base.backend import Latencies
from fxquant.backends.base.op import Output
from fxquant.backends.base.program import Frozen
from fxquant.backends.x86 import X86Backend
from fxquant.backends.x86.tuning.tuner import Tuner
from fxquant.compiler.diagnosis.sensitivity import frozen_pair
from fxquant.compiler.workflows.pipeline import calibrated
from fxquant.compiler.workflows.work import Options, Work
from tests.models import batches, settled


def frozen(name: str) -> tuple[Work, Frozen]:
    options = Options(X86Backend(), fxquant.QuantConfig())
    work, _ = frozen_pair(calibrated(settled(name), batches(name, 1), options, 1))
    assert work.assignment is not None
    return work, Frozen(work.gm, *work.sample[0], frozenset(work.assignment.reasons))


@pytest.mark.parametrize("name", ["mobilenet_v3_large", "shufflenet_v2", "bert_encoder"])
def test_every_int8_op_and_every_border_has_a_time(name: str) -> None:
    work, given = frozen(name)
    backend = work.options.backend
    found = backend.latencies(given)
    assert found is not None and work.assignment is not None
    for unit in work.assignment.int8_units:
        for times in (found.int8, found.fp32):
            assert 0 <= times[unit.root.name] < math.inf
        if unit.rule.weighted and unit.rule.output is not Output.WEIGHT_ONLY:
            assert found.fp32[unit.root.name] > 0
    floats = {p.value.name for p in work.assignment.passed if p.value in work.assignment.values}
    read = {
        p.value.name for p in work.assignment.passed if any(r not in work.assignment.reasons for r in p.readers if r)
    }
    assert (floats & read) <= found.quantize.keys() == found.dequantize.keys()
    assert all(ms > 0 for times in (found.quantize, found.dequantize) for ms in times.values())
    assert set(found.fused.values()) <= found.int8.keys()


def test_they_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    work, given = frozen("resnet18")
    first = work.options.backend.latencies(given)
    monkeypatch.setattr(Tuner, "measure", _only_known(Tuner.measure))
    assert isinstance(first, Latencies) and X86Backend().latencies(given) == first  # read from the file


def _only_known(measure):  # type: ignore[no-untyped-def]
    def known(self, call, candidates):  # type: ignore[no-untyped-def]
        before = {key: dict(times) for key, times in self._times.items()}
        times = measure(self, call, candidates)
        assert self._times == before, call.op
        return times

    return known


def test_random_numbers_are_left_alone() -> None:
    work, given = frozen("resnet18")
    state = torch.get_rng_state()
    work.options.backend.latencies(given)
    assert torch.equal(state, torch.get_rng_state())
