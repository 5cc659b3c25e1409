"""When signals are delivered, and what becomes of what their handlers raise."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from fxquant.compiler.core import interrupts
from fxquant.compiler.core.interrupts import checkpoint, held, interruptible
from fxquant.compiler.execution.batches import run_batch

from .signals import press


def test_a_signal_waits_for_a_checkpoint() -> None:
    seen: list[str] = []

    @held
    def work() -> None:
        try:
            press()
            seen.append("goes on")
            checkpoint()
            seen.append("never")
        finally:
            press()  # pressed again while cleaning up
            seen.append("cleaned up")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert seen == ["goes on", "cleaned up"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_is_delivered_at_the_end() -> None:
    with pytest.raises(KeyboardInterrupt):
        held(press)()


def test_a_users_function_is_interrupted_at_once() -> None:
    seen: list[str] = []

    def function() -> None:
        try:
            press()
            seen.append("never")
        except KeyboardInterrupt:
            seen.append("interrupted")
            raise

    with pytest.raises(KeyboardInterrupt):
        held(lambda: interruptible(function))()
    assert seen == ["interrupted"]


def test_a_held_function_in_a_users_function() -> None:
    """As a training loop in ``train=`` calls the module."""
    seen: list[str] = []

    @held
    def inner() -> None:
        press()
        seen.append("finished")

    def user() -> None:
        inner()
        seen.append("never")

    with pytest.raises(KeyboardInterrupt):
        held(lambda: interruptible(user))()
    assert seen == ["finished"]


def test_a_second_signal_after_a_while_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "PATIENCE", 0.0)
    seen: list[str] = []

    @held
    def stuck() -> None:
        press()
        seen.append("never")

    with pytest.raises(KeyboardInterrupt):
        stuck()
    assert not seen


def test_a_late_handler_that_raises_is_no_error_of_a_model(
    monkeypatch: pytest.MonkeyPatch, timeouts: Callable[[], None]
) -> None:
    monkeypatch.setattr(interrupts, "PATIENCE", 0.0)

    @held
    def stuck() -> str:
        try:
            timeouts()
        except Exception:
            return "taken for an error of a model"
        return "never"

    with pytest.raises(TimeoutError, match="too slow"):
        stuck()


def test_a_users_function_catches_what_its_handler_raises(timeouts: Callable[[], None]) -> None:
    seen: list[str] = []

    @held
    def inner() -> None:
        timeouts()
        checkpoint()
        seen.append("never")

    def user() -> None:
        for work in (inner, timeouts, timeouts):
            try:
                work()
                seen.append("never")
            except TimeoutError:
                seen.append("caught")

    held(lambda: interruptible(user))()
    assert seen == ["caught"] * 3


def test_all_waiting_signals_are_delivered(timeouts: Callable[[], None]) -> None:
    @held
    def both() -> None:
        timeouts()
        press()

    with pytest.raises((TimeoutError, KeyboardInterrupt)) as raised:
        both()
    assert {type(raised.value), type(raised.value.__context__)} == {TimeoutError, KeyboardInterrupt}


def test_our_handler_put_back_too_late_calls_the_users() -> None:
    ours: list[Any] = []
    held(lambda: ours.append(signal.getsignal(signal.SIGINT)))()
    signal.signal(signal.SIGINT, ours[0])
    with pytest.raises(KeyboardInterrupt):
        press()


def test_what_a_handler_raises_is_no_error_of_a_model(timeouts: Callable[[], None]) -> None:
    """An Exception that is raised while a graph of the model runs comes out as it is."""

    @held
    def work() -> None:
        timeouts()
        run_batch(lambda: checkpoint(), ((), {}))

    with pytest.raises(TimeoutError, match="too slow"):
        work()
