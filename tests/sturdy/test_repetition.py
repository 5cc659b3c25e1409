"""The same answer from every compilation and call, in the same memory."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import QATModule
from fxquant.backends.x86.tuning import tuner
from fxquant.compiler.core.memory import release_memory

from ..models.zoo import batches, settled
from .process_state import DATA, NET, train


def resident() -> float:
    """MiB of this process in memory."""
    gc.collect()
    release_memory()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Other processes that take all that they can get."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def answers(model: nn.Module, data: Sequence[Any]) -> tuple[Tensor, list[tuple[str, str, str]]]:
    q = fxquant.compile(model, calibration=data)
    return q(*data[0]), [(row.node, row.precision, row.kernel) for row in q.report.rows]


@pytest.mark.slow
@pytest.mark.parametrize("name", ("mobilenet_v3_large",))
def test_times_do_not_change_the_answer(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Random times stand for a machine that is busy in any way."""
    chance = random.Random(0)

    def race(call: Any, candidates: Sequence[Any], form: str) -> tuple[dict[str, float], bool]:
        return {c.kernel: chance.uniform(1e-3, 1e3) for c in candidates}, False

    monkeypatch.setattr(tuner, "race", race)
    model, data = settled(name), batches(name, 1)
    found = []
    for number in range(3):
        monkeypatch.setenv("FXQUANT_CACHE", str(tmp_path / str(min(number, 1))))
        found.append(answers(model, data))
    for output, rows in found[1:]:
        assert torch.equal(output, found[0][0])
        assert [row[:2] for row in rows] == [row[:2] for row in found[0][1]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ("mobilenet_v2", "efficientnet_b0", "shufflenet_v2", "bert_encoder"))
def test_five_compilations_idle_and_busy(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, data = settled(name), batches(name, 1)
    expected, rows = answers(model, data)
    for number in range(4):
        monkeypatch.setenv("FXQUANT_CACHE", str(tmp_path / str(number // 2)))
        with busy(2 * (number % 2)):
            output, others = answers(model, data)
        assert torch.equal(output, expected) and [r[:2] for r in others] == [r[:2] for r in rows]


FORMS: dict[str, Callable[[nn.Module, Any, Any], Any]] = {
    "eager": lambda model, data, x: fxquant.compile(model, calibration=data, executor="eager")(*x),
    "torchscript": lambda model, data, x: fxquant.compile(model, calibration=data, executor="torchscript")(*x),
    "auto": lambda model, data, x: fxquant.compile(model, calibration=data)(*x),
    "dynamic": lambda model, data, x: fxquant.compile(model, "dynamic")(*x),
    "qat": lambda model, data, x: fxquant.compile(model, "qat", calibration=data, train=lambda q: None)(*x),
}


def growth(form: str, model: nn.Module, data: Sequence[Any], times: int) -> float:
    """MiB that the process grows by after the third compilation."""
    start = 0.0
    for number in range(times):
        FORMS[form](model, data, data[0])
        gc.collect()  # graphs are cycles
        if number == 2:
            start = resident()
    return resident() - start


OF_X86 = ("eager", "torchscript")


@pytest.mark.parametrize("form", [pytest.param(f, marks=pytest.mark.slow) if f in OF_X86 else f for f in FORMS])
def test_compilations_do_not_grow_the_process(form: str) -> None:
    """The weights of this model alone have 5 MB."""
    torch.manual_seed(0)
    model = nn.Sequential(*(m for _ in range(20) for m in (nn.Linear(256, 256), nn.ReLU()))).eval()
    assert growth(form, model, [(torch.randn(4, 256),)], 8) < 2


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_thirty_compilations_do_not_grow_the_process(form: str) -> None:
    assert growth(form, settled("mobilenet_v2"), batches("mobilenet_v2", 1), 30) < 5


@pytest.mark.slow
@pytest.mark.parametrize("executor", ("eager", "torchscript"))
def test_twenty_thousand_calls(executor: Any) -> None:
    q = fxquant.compile(NET, calibration=DATA, executor=executor)
    expected = q(DATA[0])
    for _ in range(100):
        q(DATA[0])
    start = resident()
    for _ in range(20_000):
        result = q(DATA[0])
    assert torch.equal(result, expected)
    assert resident() - start < 2


class Wide(nn.Sequential):
    """Linear layers of 16 MB each."""

    def __init__(self, layers: int) -> None:
        super().__init__(*(m for _ in range(layers) for m in (nn.Linear(2048, 2048), nn.ReLU())))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ("static", "dynamic"))
def test_peak_memory(scheme: Any) -> None:
    """At most three times the model, itself included; in a process that has compiled before."""
    data = [torch.randn(8, 2048)]
    options: dict[str, Any] = {} if scheme == "dynamic" else {"calibration": data}
    fxquant.compile(Wide(1).eval(), scheme, **options)(data[0])
    model = Wide(18).eval()
    size, start = sum(p.numel() for p in model.parameters()) * 4 / 2**20, resident()
    peak, done = start, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20)
            time.sleep(0.002)

    watching = threading.Thread(target=watch)
    watching.start()
    fxquant.compile(model, scheme, **options)(data[0])
    done.set()
    watching.join()
    assert (peak - start) / size + 1 < 3.1


def test_a_training_module_is_freed() -> None:
    """Nothing of it is kept by the result."""
    seen: list[weakref.ref[QATModule]] = []

    def watched(q: QATModule) -> None:
        seen.append(weakref.ref(q))
        train(q)

    q = fxquant.compile(NET, "qat", calibration=DATA, train=watched)
    gc.collect()
    assert seen[0]() is None and torch.isfinite(q(DATA[0])).all()
