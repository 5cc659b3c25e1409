"""An exception at any call of the pipeline: the process is as before, and the next compilation works."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import fxquant
from fxquant.backends.x86.runtime import engine

from .process_state import DATA, NET, WORKFLOWS, state

pytestmark = [
    # Where it is raised in a generator that is being closed, Python only reports it.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    # Int8 is not faster while Python counts calls.
    pytest.mark.filterwarnings("ignore::fxquant.BudgetWarning"),
]

ROOT = str(Path(fxquant.__file__).parent)
# They put things back: what is raised at their own call cannot be survived by anything.
GUARDS = ("core/interrupts.py", "core/entry_point.py")


class Injected(BaseException):
    """Not an Exception: no handler of ours may swallow it."""


def calls_of(work: Callable[[], Any], raise_at: int | None = None, file: str = "", event: str = "call") -> int:
    """How many calls (or lines) of fxquant ``work`` makes; raises at one of them."""
    count = 0

    def trace(frame: FrameType, what: str, _: object) -> Any:
        nonlocal count
        name = frame.f_code.co_filename
        if not name.startswith(ROOT) or not name.endswith(file) or name.endswith(GUARDS):
            return None
        if what == event:
            count += 1
            if count == raise_at:
                raise Injected
        return trace if event == "line" else None

    old = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(old)
    return count


def check(name: str, places: range) -> None:
    for place in places:
        before = state()
        try:
            calls_of(WORKFLOWS[name], place)
        except Injected:
            pass
        except RuntimeError as error:  # what is raised in a Python op that TorchScript calls
            assert "Injected" in str(error)
        after = state()
        assert after == before, (place, [key for key in before if after[key] != before[key]])
    assert torch.isfinite(fxquant.compile(NET, calibration=DATA)(DATA[0])).all()


@pytest.mark.parametrize("name", ("static", "dynamic", "qat", "search", "sensitivity"))
def test_at_calls_all_over_the_pipeline(name: str) -> None:
    WORKFLOWS[name]()
    total = calls_of(WORKFLOWS[name])
    assert total > 500
    check(name, range(1, total, total // 8))


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKFLOWS)
def test_at_many_calls(name: str) -> None:
    total = calls_of(WORKFLOWS[name])
    check(name, range(1, total, max(total // 300, 1)))


def test_at_every_line_of_the_engine() -> None:
    before = torch.backends.quantized.engine

    def nested() -> None:
        engine.run_under("onednn", lambda: engine.run_under("fbgemm", lambda: None))

    nested()
    total = calls_of(nested, file="runtime/engine.py", event="line")
    assert total > 50
    for place in range(1, total + 1):
        with pytest.raises(Injected):
            calls_of(nested, place, "runtime/engine.py", "line")
        assert torch.backends.quantized.engine == before, place
        room = engine._room
        assert not room._inside and not room._queue and not room._own.holds and not room._lock._is_owned(), place  # type: ignore[attr-defined]
    nested()
