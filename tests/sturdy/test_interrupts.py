"""Ctrl-C at any moment: it is delivered once, soon, and leaves nothing changed."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import fxquant

from .process_state import DATA, NET, WORKFLOWS, state
from .signals import dropped, press


def interrupted(work: Callable[[], Any], delay: float) -> bool:
    """Whether ``work`` ends with KeyboardInterrupt if Ctrl-C is pressed after ``delay`` seconds.

    Also true if Python itself dropped it, in a destructor.
    """

    def later() -> None:
        time.sleep(delay)
        press()

    thread = threading.Thread(target=later)
    with dropped(KeyboardInterrupt) as lost:
        try:
            try:
                thread.start()
                work()
            finally:
                thread.join()
                time.sleep(0.001)  # what came last is delivered here
        except KeyboardInterrupt:
            return True
    return bool(lost)


def check_at_random(times: int, monkeypatch: pytest.MonkeyPatch, cold: bool, tmp_path: Any) -> None:
    chance, seconds = random.Random(0), dict[str, float]()
    for name, work in WORKFLOWS.items():
        work()
        began = time.perf_counter()
        work()
        seconds[name] = time.perf_counter() - began
    for number in range(times):
        name = chance.choice(list(WORKFLOWS))
        if cold:
            monkeypatch.setenv("FXQUANT_CACHE", str(tmp_path / str(number)))
        before = state()
        assert interrupted(WORKFLOWS[name], chance.random() * seconds[name]), f"{name}: the interrupt was swallowed"
        after = state()
        assert after == before, [key for key in before if after[key] != before[key]]
        if number % 10 == 0:
            assert torch.isfinite(fxquant.compile(NET, calibration=DATA)(DATA[0])).all()


def test_random_moments(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    check_at_random(20, monkeypatch, True, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("cold", (False, True))
def test_a_thousand_random_moments(monkeypatch: pytest.MonkeyPatch, tmp_path: Any, cold: bool) -> None:
    check_at_random(1000, monkeypatch, cold, tmp_path)


def test_a_handler_of_the_user_is_called_and_put_back() -> None:
    calls: list[int] = []

    def handler(number: int, frame: object) -> None:
        calls.append(number)

    before = signal.signal(signal.SIGINT, handler)
    try:

        def batches() -> Iterator[Tensor]:
            for x in DATA:
                press()
                yield x

        q = fxquant.compile(NET, calibration=batches())
        assert torch.isfinite(q(DATA[0])).all()
        assert len(calls) == len(DATA) and signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_timeout_of_the_user(timeouts: Callable[[], None]) -> None:
    """A handler of SIGALRM that raises is held like Ctrl-C."""
    before = state()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with dropped(TimeoutError) as lost:
            try:
                WORKFLOWS["learned"]()
            except TimeoutError as error:
                lost.append(error)
        assert [str(error) for error in lost] == ["too slow"]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert state() == before


def test_interrupted_calls_leave_the_modes() -> None:
    q = fxquant.compile(NET, calibration=DATA)
    before = state()
    for _ in range(30):
        interrupted(lambda: [q(DATA[0]) for _ in range(20)], random.random() * 2e-3)
        assert state() | {"python": 0} == before | {"python": 0}
