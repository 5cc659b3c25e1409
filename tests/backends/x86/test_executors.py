"""Every executor gives the same values, with the same kernels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from fxquant.backends.x86.kernels.calls import Candidate, Int8Call
from fxquant.backends.x86.tuning import tuner

from ...op_cases import CASES, OpCase
from .support import compiled, seeded
from .test_engine import Residual, data


@pytest.fixture(autouse=True)
def given_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kernel is as fast under one executor as under another."""

    def race(call: Int8Call, candidates: Sequence[Candidate], form: str) -> tuple[dict[str, float], bool]:
        return {candidate.kernel: 1.0 + i for i, candidate in enumerate(candidates)}, True

    monkeypatch.setattr(tuner, "race", race)
    monkeypatch.setenv("FXQUANT_CACHE", str(tmp_path))


def test_residual() -> None:
    model, calibration = seeded(Residual), [data(s) for s in (1, 2, 3)]
    eager, script = (compiled(model, calibration, executor=e) for e in ("eager", "torchscript"))
    for args in (*calibration, data(4, 5), data(5, 1)):
        assert torch.equal(eager(*args), script(*args))


NAMES = ("conv2d_plain", "linear_linear", "mul_gate", "cat_of_convs", "shuffle_between_convs", "chunk_between_convs",
         "conv_hardswish_conv", "squeeze_excite", "interpolate_bilinear", "gelu", "mean_keepdim")  # fmt: skip


@pytest.mark.parametrize("case", [c for c in CASES if c.name in NAMES], ids=lambda case: case.name)
def test_cases(case: OpCase) -> None:
    model, calibration = seeded(case.build), seeded(lambda: [case.inputs(1), case.inputs(3)])
    eager, script = (compiled(model, calibration, config=case.config, executor=e) for e in ("eager", "torchscript"))
    for args in calibration:
        assert torch.equal(eager(*args), script(*args))
