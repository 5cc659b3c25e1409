"""Measured latencies: of every int8 op, and of every value that may be converted."""

from __future__ import annotations

import copy
import math

import pytest
import torch

import fxquant
from fxquant.backends.base.backend import Latencies
from fxquant.backends.base.op import Output
from fxquant.backends.x86 import X86Backend
from fxquant.backends.x86.tuning.tuner import Tuner
from fxquant.compiler.diagnosis.sensitivity import freeze_all
from fxquant.compiler.workflows.options import Options
from fxquant.compiler.workflows.stages import FrozenModel
from fxquant.compiler.workflows.static import prepare_and_calibrate
from tests.models import batches, settled


def frozen(name: str) -> FrozenModel:
    options = Options(X86Backend(), fxquant.QuantConfig())
    return freeze_all(prepare_and_calibrate(settled(name), batches(name, 1), options, 1))


@pytest.mark.parametrize(
    "name", [pytest.param("mobilenet_v3_large", marks=pytest.mark.slow), "shufflenet_v2", "bert_encoder"]
)
def test_every_int8_op_and_every_border_has_a_time(name: str) -> None:
    model = frozen(name)
    assignment = model.assignment
    found = model.options.backend.latencies(model.program)
    assert found is not None
    for unit in assignment.int8_units:
        for times in (found.int8, found.fp32):
            assert 0 <= times[unit.root.name] < math.inf
        if unit.row.weighted and unit.row.output is not Output.WEIGHT_ONLY:
            assert found.fp32[unit.root.name] > 0
    floats = {p.value.name for p in assignment.passed if p.value in assignment.values}
    read = {p.value.name for p in assignment.passed if any(r not in assignment.reasons for r in p.readers if r)}
    assert (floats & read) <= found.quantize.keys() == found.dequantize.keys()
    assert all(ms > 0 for times in (found.quantize, found.dequantize) for ms in times.values())
    assert set(found.fused.values()) <= found.int8.keys()


def test_they_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = frozen("resnet18")
    first = model.options.backend.latencies(model.program)
    monkeypatch.setattr(Tuner, "measure", _only_known(Tuner.measure))
    assert isinstance(first, Latencies) and X86Backend().latencies(model.program) == first  # read from the file


def _only_known(measure):  # type: ignore[no-untyped-def]
    def known(self, call, candidates):  # type: ignore[no-untyped-def]
        before = copy.deepcopy(self._cache._times)
        times = measure(self, call, candidates)
        assert self._cache._times == before, call.op
        return times

    return known


def test_random_numbers_are_left_alone() -> None:
    model = frozen("resnet18")
    state = torch.get_rng_state()
    model.options.backend.latencies(model.program)
    assert torch.equal(state, torch.get_rng_state())
