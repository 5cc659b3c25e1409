"""Threads and forks: right results, no hang, and nothing of other threads is disturbed."""

from __future__ import annotations

import multiprocessing
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import fxquant

from .process_state import DATA, NET, Net, state


def in_threads(functions: Sequence[Callable[[], Any]]) -> list[Any]:
    """What each returns, run at once. Raises what one of them raises."""
    results: list[Any] = [None] * len(functions)
    errors: list[BaseException] = []
    start = threading.Barrier(len(functions))

    def run(number: int) -> None:
        try:
            start.wait()
            results[number] = functions[number]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "deadlock"
    if errors:
        raise errors[0]
    return results


def compiled() -> Tensor:
    result: Tensor = fxquant.compile(NET, calibration=DATA)(DATA[0])
    return result


def test_four_threads_compile_at_once() -> None:
    expected, before = compiled(), state()
    for result in in_threads([compiled] * 4):
        assert torch.equal(result, expected)
    assert state() == before


def test_eight_threads_call_one_module() -> None:
    q = fxquant.compile(NET, calibration=DATA)
    expected = [q(x) for x in DATA]

    def call() -> bool:
        return all(torch.equal(q(x), y) for _ in range(20) for x, y in zip(DATA, expected, strict=True))

    assert all(in_threads([call] * 8))


def test_calls_beside_a_compilation() -> None:
    """Also of float models: tracing must not see their modules."""
    q, model = fxquant.compile(NET, calibration=DATA), Net().eval()
    expected, exact = q(DATA[0]), model(DATA[0])
    done = threading.Event()

    def call() -> None:
        while not done.is_set():
            assert torch.equal(q(DATA[0]), expected)
            assert torch.equal(model(DATA[0]), exact)
            assert nn.Sequential(nn.Linear(3, 3))(torch.zeros(1, 3)).shape == (1, 3)

    def compile_often() -> None:
        try:
            for _ in range(3):
                compiled()
                fxquant.compile(NET, "dynamic")(DATA[0])
        finally:
            done.set()

    in_threads([call, call, compile_often])


def test_warnings_and_random_numbers_of_other_threads() -> None:
    done = threading.Event()
    generator_was_moved = False

    def compile_often() -> None:
        try:
            for _ in range(3):
                compiled()
        finally:
            done.set()

    def draw() -> None:
        """The numbers of a seed come in the right order, however many compilations run beside."""
        nonlocal generator_was_moved
        torch.manual_seed(7)
        expected = torch.Generator().manual_seed(7)
        while not done.is_set():
            generator_was_moved |= not torch.equal(torch.rand(3), torch.rand(3, generator=expected))

    with warnings.catch_warnings():
        in_threads([compile_often, draw])
        assert not generator_was_moved
        warnings.filterwarnings("ignore", message="ours")
        kept = list(warnings.filters)
        compiled()
        assert warnings.filters == kept


def test_the_number_of_threads_may_change() -> None:
    q, threads = fxquant.compile(NET, calibration=DATA), torch.get_num_threads()
    expected = q(DATA[0])
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            assert torch.equal(q(DATA[0]), expected) and torch.equal(compiled(), expected)
    finally:
        torch.set_num_threads(threads)


def _child(send: Any) -> None:
    torch.set_num_threads(1)  # torch's own threads do not survive a fork
    send.send(compiled().tolist())


def in_child(method: str) -> Tensor:
    context = multiprocessing.get_context(method)
    receive, send = context.Pipe()
    process = context.Process(target=_child, args=(send,))  # type: ignore[attr-defined]
    process.start()
    try:
        assert receive.poll(120), "the child hangs"
        return torch.tensor(receive.recv())
    finally:
        process.kill()
        process.join()


def test_spawn_after_a_compilation() -> None:
    assert torch.equal(in_child("spawn"), compiled())


def test_fork_while_another_thread_calls() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected, q, done = compiled(), fxquant.compile(NET, calibration=DATA), threading.Event()

        def call() -> None:
            while not done.is_set():
                q(DATA[0])

        thread = threading.Thread(target=call)
        thread.start()
        try:
            for _ in range(3):
                assert torch.equal(in_child("fork"), expected)
        finally:
            done.set()
            thread.join()
    finally:
        torch.set_num_threads(threads)
