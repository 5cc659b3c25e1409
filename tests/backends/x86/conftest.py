"""Fixtures of the x86 tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fxquant.backends.x86.lowering import fp32_entry
from fxquant.backends.x86.tuning import race


@pytest.fixture(scope="session", autouse=True)
def quick_tuning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One round a kernel (results do not depend on which one wins), and a cache of our own."""
    with pytest.MonkeyPatch.context() as patch:
        folder: Path = tmp_path_factory.mktemp("kernels")
        patch.setattr(race, "ROUNDS", 1)
        patch.setattr(race, "BUDGET", 0.0)
        patch.setenv("FXQUANT_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def enter_in_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first convolution in int8, however the measurement goes: most models here have no other."""
    monkeypatch.setattr(fp32_entry, "SHARE", -1e9)
