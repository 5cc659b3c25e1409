"""Random programs compile, and x86 computes what the reference backend computes."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from .programs import PROGRAMS, Line, outcome

QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much]


@given(program=PROGRAMS)
@settings(max_examples=30, suppress_health_check=QUIET)
def test_some(program: tuple[str, list[Line], int]) -> None:
    assert outcome(*program).fault == ""


@pytest.mark.slow
@given(program=PROGRAMS)
@settings(max_examples=2000, suppress_health_check=QUIET, derandomize=False)
def test_two_thousand(program: tuple[str, list[Line], int]) -> None:
    assert outcome(*program).fault == ""
