"""Random programs compile, and every backend computes what the program says."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from fxquant.backends.registry import BackendName

from .programs import PROGRAMS, Line, outcome

QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much]


@pytest.mark.parametrize("backend", ["llvm", "x86"])
@given(program=PROGRAMS)
@settings(max_examples=30, suppress_health_check=QUIET)
def test_some(backend: BackendName, program: tuple[str, list[Line], int]) -> None:
    assert outcome(*program, backend).fault == ""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["llvm", "x86"])
@given(program=PROGRAMS)
@settings(max_examples=2000, suppress_health_check=QUIET, derandomize=False)
def test_two_thousand(backend: BackendName, program: tuple[str, list[Line], int]) -> None:
    assert outcome(*program, backend).fault == ""
