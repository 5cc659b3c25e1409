"""What all tests share: two threads, a cache of kernel times of their own, quick tuning, a seed for each test."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import settings

from fxquant.backends.x86.tuning import race
from fxquant.compiler.execution import timing
from fxquant.passes.analysis import slower_ops

settings.register_profile("fxquant", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("fxquant")


@pytest.fixture(scope="session", autouse=True)
def _machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Kernels are timed once each: results do not depend on which one wins."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "_cores_are_wanted", lambda: False)  # else times would not be kept
        patch.setenv("FXQUANT_CACHE", str(tmp_path_factory.mktemp("fxquant_cache")))
        patch.setattr(race, "ROUNDS", 1)
        patch.setattr(race, "BUDGET", 0.0)
        torch.set_num_threads(2)
        yield


@pytest.fixture(autouse=True)
def speed_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is int8 must not depend on how busy the machine is; a test of that very decision sets what it wants."""
    monkeypatch.setattr(slower_ops, "LEAST_GAIN", (0.0, math.inf))


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
