"""Fixtures of the x86 tests."""

from __future__ import annotations

import pytest

from fxquant.backends.x86.lowering import fp32_entry


@pytest.fixture(autouse=True)
def enter_in_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first convolution in int8, however the measurement goes: most models here have no other."""
    monkeypatch.setattr(fp32_entry, "SHARE", -1e9)
