"""A planned program in use: other shapes, threads, memory, errors."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant.backends.base.program import FrozenProgram
from fxquant.backends.llvm.lowering import programs
from fxquant.backends.llvm.lowering.programs import PlannedProgram
from fxquant.backends.llvm.runtime import native, openmp

from ...models import FURTHER_CNNS, ZOO, batches, settled
from ...models.layers import ConvBNAct
from .support import BEST, frozen, planned

DATA = [(torch.randn(2, 3, 20, 24),) for _ in range(2)]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(ConvBNAct(3, 16, 3, 2), ConvBNAct(16, 16, 3, 1, 16), nn.Conv2d(16, 24, 1), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5))  # fmt: skip


@pytest.fixture(scope="module")
def program() -> FrozenProgram:
    return frozen(net(), DATA)


def test_plans_are_kept_by_shape_and_bounded(program: FrozenProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "PLANS", 3)
    run = PlannedProgram(program, BEST)
    for size in (20, 21, 22, 23, 20):
        x = torch.randn(1, 3, size, size)
        assert torch.equal(run(x), run(x))
    assert len(run._plans) == 3
    used = next(iter(run._plans))
    run(torch.randn(1, 3, 22, 22))  # in use again: the next one to go is another
    assert next(iter(run._plans)) != used or used[0][1][-1] != 22


def test_many_shapes_are_told_once(
    program: FrozenProgram, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(programs, "PLANS", 2)
    run = PlannedProgram(program, BEST)
    for size in range(20, 26):
        run(torch.randn(1, 3, size, 20))
    assert [r.getMessage() for r in caplog.records] == [programs.MANY_SHAPES]


def test_an_empty_batch(program: FrozenProgram) -> None:
    assert PlannedProgram(program, BEST)(torch.randn(0, 3, 20, 24)).shape == (0, 5)


def test_any_strides(program: FrozenProgram) -> None:
    run, x = PlannedProgram(program, BEST), torch.randn(2, 3, 20, 24)
    wide = torch.randn(4, 6, 40, 24)
    wide[::2, ::2, ::2] = x
    variants = (
        x.contiguous(memory_format=torch.channels_last), wide[::2, ::2, ::2], x.flip(3).contiguous().flip(3),
        torch._neg_view(-x), x.clone().requires_grad_(),
    )  # fmt: skip
    for variant in variants:
        assert torch.equal(run(variant), run(x))
    assert run(x[:1].expand(2, -1, -1, -1)).shape == (2, 5)


def test_many_callers(program: FrozenProgram) -> None:
    """10,000 calls of eight threads give what one call gives; each concurrent caller has an arena."""
    run = PlannedProgram(program, BEST)
    inputs = [torch.randn(n, 3, 20, 24) for n in (1, 2)]
    expected = [run(x) for x in inputs]
    wrong: list[str] = []

    def call(number: int) -> None:
        torch.set_num_threads(1 + number % 2)
        for i in range(1250):
            which = (i + number) % 2
            if not torch.equal(run(inputs[which]), expected[which]):
                wrong.append(f"call {i} of thread {number}")

    threads = [threading.Thread(target=call, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.set_num_threads(2)
    assert not wrong
    assert all(len(plan.program._idle) <= 8 for plan in run._plans.values())


def test_a_call_allocates_its_outputs_alone(program: FrozenProgram) -> None:
    run, x = PlannedProgram(program, BEST), torch.randn(1, 3, 20, 24)
    run(x)
    with torch.profiler.profile(profile_memory=True) as profile:
        y = run(x)
    taken = [e.cpu_memory_usage for e in profile.key_averages() if e.cpu_memory_usage > 0]
    assert sum(taken) <= y.numel() * 4 + 64


def test_compiling_again_and_again_does_not_grow() -> None:
    def resident() -> int:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    model = net()
    for _ in range(10):
        fxquant.compile(model, calibration=DATA, backend="llvm")(*DATA[0])
    before = resident()
    for _ in range(50):
        fxquant.compile(model, calibration=DATA, backend="llvm")(*DATA[0])
    assert resident() - before < 20 * 2**20


@pytest.mark.parametrize(
    "name", ["densenet", *(pytest.param(n, marks=pytest.mark.slow) for n in ("shufflenet_v2", "ghostnet"))]
)
def test_the_arena_is_as_small_as_can_be(name: str) -> None:
    zoo = {**ZOO, **FURTHER_CNNS}
    q = fxquant.compile(settled(name, zoo=zoo), calibration=batches(name, 1, zoo=zoo), backend="reference")
    memory = planned(q.program, batches(name, 1, zoo=zoo)[0]).memory
    assert memory.arena_bytes <= 1.1 * memory.least_bytes


def test_without_openmp_one_thread_runs(program: FrozenProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = PlannedProgram(program, BEST)(*DATA[0])
    monkeypatch.setattr(native, "openmp", lambda: None)
    assert torch.equal(PlannedProgram(program, BEST)(*DATA[0]), expected)
    assert openmp.openmp() is not None


def test_out_of_memory_is_told(program: FrozenProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(size: int) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    run = PlannedProgram(program, BEST)
    expected = run(*DATA[0])
    plan = next(iter(run._plans.values()))
    plan.program._idle.clear()
    with monkeypatch.context() as patch:
        patch.setattr(native, "aligned_bytes", none)
        patch.setattr(native, "_BLOCKS", {})
        with pytest.raises(fxquant.CallError, match=r"No memory for an arena of \d+ MiB"):
            run(*DATA[0])
    assert torch.equal(run(*DATA[0]), expected)


def test_the_user_sees_what_was_chosen() -> None:
    q = fxquant.compile(net(), calibration=DATA)
    kernels = {row.kernel for row in q.report.rows}
    assert any(k.startswith(BEST.name) for k in kernels), kernels
