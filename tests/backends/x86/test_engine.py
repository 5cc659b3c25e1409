"""torch's process-wide quantized engine is the user's own, before, after and beside our calls."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.backends.x86.runtime.engine import available, run_under
from fxquant.compiler.runtime.quantized_module import QuantizedModule

from .support import compiled, oracle, seeded, sqnr


class Residual(nn.Module):
    """A body whose sum is fused into its last convolution, where that pays."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(8, 16, 3, padding=1)
        self.first = nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return F.relu(self.last(F.relu(self.first(x))) + x)


@pytest.fixture(params=("fbgemm", "qnnpack", "x86", "onednn"))
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = request.param
    yield request.param
    torch.backends.quantized.engine = before


@pytest.fixture
def always_fuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fuse whatever the clock says, so that a module needs the engine."""
    from fxquant.backends.x86.lowering import fuse

    monkeypatch.setattr(fuse, "TOLERANCE", 1e9)


def data(seed: int = 1, batch: int = 2) -> tuple[Tensor, ...]:
    return seeded(lambda: (torch.randn(batch, 8, 12, 12),), seed)


def fused_module() -> QuantizedModule:
    q = compiled(seeded(Residual), [data(s) for s in (1, 2, 3)])
    assert any("conv2d_add" in row.kernel for row in q.report.rows), q.report
    return q


@pytest.mark.usefixtures("always_fuse")
def test_engine_of_the_user_stays(engine: str) -> None:
    q = fused_module()
    assert torch.backends.quantized.engine == engine
    assert sqnr(oracle(q, *data()), q(*data())) > 30
    assert torch.backends.quantized.engine == engine
    with pytest.raises((RuntimeError, TypeError)):
        q(torch.randn(1, 3, 12, 12))
    assert torch.backends.quantized.engine == engine
    assert torch.equal(q(*data()), q(*data()))
    assert torch.backends.quantized.engine == engine


def test_engine_after_a_failure_inside() -> None:
    before = torch.backends.quantized.engine
    with pytest.raises(ZeroDivisionError):
        run_under("onednn", lambda: 1 / 0)
    assert torch.backends.quantized.engine == before


def test_nested_engines() -> None:
    before = torch.backends.quantized.engine
    seen: list[str] = []

    def look() -> None:
        seen.append(torch.backends.quantized.engine)

    def outer() -> None:
        look()
        run_under("fbgemm", look)
        look()
        run_under("onednn", look)

    run_under("onednn", outer)
    assert seen == ["onednn", "fbgemm", "onednn", "onednn"]
    assert torch.backends.quantized.engine == before


@pytest.mark.usefixtures("always_fuse")
def test_concurrent_calls() -> None:
    before = torch.backends.quantized.engine
    modules = [fused_module(), fused_module()]
    expected = [[q(*data(s)) for s in range(8)] for q in modules]
    wrong: list[str] = []
    start = threading.Barrier(3)

    def call(number: int) -> None:
        try:
            start.wait()
            for _ in range(5):
                for s in range(8):
                    if not torch.equal(modules[number](*data_at[s]), expected[number][s]):
                        wrong.append(f"module {number}, input {s}")
        except Exception as error:
            wrong.append(repr(error))

    def pack() -> None:
        """Another thread that wants other engines meanwhile."""
        try:
            start.wait()
            for _ in range(20):
                for name in available():
                    assert run_under(name, lambda: torch.backends.quantized.engine) == name
        except Exception as error:
            wrong.append(repr(error))

    data_at = [data(s) for s in range(8)]
    threads = [threading.Thread(target=call, args=(i,)) for i in (0, 1)] + [threading.Thread(target=pack)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "deadlock"
    assert not wrong
    assert torch.backends.quantized.engine == before
