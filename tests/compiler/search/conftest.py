"""Ops of known speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from torch import nn

import fxquant
from fxquant.backends.base.backend import Latencies
from fxquant.backends.base.program import FrozenProgram
from fxquant.backends.x86 import X86Backend
from fxquant.backends.x86.codegen import executors
from fxquant.compiler.search import evaluator


@pytest.fixture(autouse=True)
def given_speed(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Ops take half the time in int8; a module the less, the more of its ops are: [int8, fp32] ms of a whole."""
    speed = [1.0, 2.0]

    def latencies(self: X86Backend, program: FrozenProgram) -> Latencies:
        names = [n.name for n in program.module.graph.nodes]
        borders = dict.fromkeys(names, 0.01)
        return Latencies(dict.fromkeys(names, 0.5), dict.fromkeys(names, 1.0), borders, borders, {})

    def medians(runs: Sequence[Callable[[], object]], rounds: int, seconds: float) -> list[float]:
        return [_milliseconds(run.func, *speed) for run in runs]  # type: ignore[attr-defined]

    monkeypatch.setattr(X86Backend, "latencies", latencies)
    monkeypatch.setattr(evaluator, "interleaved_medians", medians)
    monkeypatch.setitem(executors.EXECUTORS, "auto", executors.eager)  # tracing takes longer than all else here
    return speed


def _milliseconds(module: nn.Module, int8: float, fp32: float) -> float:
    if not isinstance(module, fxquant.QuantizedModule):
        return fp32
    counts = module.report.counts
    share = counts.get("int8", 0) / sum(counts.values())
    return share * int8 + (1 - share) * fp32
