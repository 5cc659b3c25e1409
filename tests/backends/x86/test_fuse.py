"""Fusing a residual sum: only where the residual may be overwritten, with the result of the unfused form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant import QuantConfig
from fxquant.backends.x86 import backend
from fxquant.backends.x86.lowering import fuse
from fxquant.compiler.runtime.quantized_module import QuantizedModule

from .support import compiled, oracle, output_step, seeded, sqnr, tensors

Body = Callable[["Convs", Tensor], Any]


class Convs(nn.Module):
    """Three convolutions and a forward over them."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.body = body

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def plain(m: Convs, x: Tensor) -> Tensor:
    x = m.a(x)
    return m.b(x) + x


def with_relu(m: Convs, x: Tensor) -> Tensor:
    x = F.relu(m.a(x))
    return F.relu(x + m.c(F.relu(m.b(x))))


def two_blocks(m: Convs, x: Tensor) -> Tensor:
    x = F.relu(m.a(x))
    x = F.relu(m.b(x) + x)
    return F.relu(m.c(x) + x)


def both_convs(m: Convs, x: Tensor) -> Tensor:
    return m.b(m.a(x)) + m.c(x)


def pointless_conv(m: Convs, x: Tensor) -> Tensor:
    x = m.a(x)
    return F.relu6(m.b(F.max_pool2d(x, 3, 1, 1)) + x)


def read_again(m: Convs, x: Tensor) -> Tensor:
    x = m.a(x)
    y = m.b(x) + x
    return m.c(y) * x


def read_again_by_output(m: Convs, x: Tensor) -> tuple[Tensor, Tensor]:
    x = m.a(x)
    return m.b(x) + x, x


def conv_reads_residual_through_view(m: Convs, x: Tensor) -> Tensor:
    x = m.a(x)
    return m.b(x.transpose(2, 3)) + x


def residual_is_a_view(m: Convs, x: Tensor) -> Tensor:
    x = m.a(x)
    return torch.cat((m.b(x) + x.transpose(2, 3), x), 1)


def residual_is_input(m: Convs, x: Tensor) -> Tensor:
    return F.relu(m.b(F.relu(m.a(x))) + x)


def residual_is_input_twice(m: Convs, x: Tensor) -> tuple[Tensor, Tensor]:
    return m.a(x) + x, m.b(x)


def conv_on_itself(m: Convs, x: Tensor) -> Tensor:
    y = m.a(x)
    return y + y


def reader_moved_behind_the_overwriting(m: Convs, x: Tensor) -> Tensor:
    r = F.relu(m.a(x))
    first = m.b(r)  # reads r before the sum below overwrites it, unless it is fused into the sum after that
    second = m.c(F.relu(x)) + r
    return m.a(first + second)


def broadcast(m: Convs, x: Tensor) -> Tensor:
    return m.b(m.a(x)) + m.c(F.adaptive_avg_pool2d(m.a(x), 1))


FUSED: tuple[Body, ...] = (with_relu, both_convs, residual_is_input)
ALWAYS_APART: tuple[Body, ...] = (
    plain, two_blocks, pointless_conv, read_again, read_again_by_output, conv_reads_residual_through_view,
    residual_is_a_view, conv_on_itself, broadcast,
)  # fmt: skip
# The second reader of residual_is_input_twice may stand before the sum or after it.
NOT_FUSED: tuple[Body, ...] = (*ALWAYS_APART, residual_is_input_twice)


def data(seed: int = 1) -> tuple[Tensor, ...]:
    return seeded(lambda: (torch.randn(2, 8, 10, 10),), seed)


def build(body: Body) -> QuantizedModule:
    # A sum with the model's input is fp32 by default.
    config = QuantConfig(overrides={"add": QuantConfig()})
    return compiled(seeded(lambda: Convs(body)), [data(s) for s in (1, 2, 3)], config=config)


def adds_fused(q: QuantizedModule) -> int:
    return sum("conv2d_add" in row.kernel for row in q.report.rows)


@pytest.fixture(autouse=True)
def always_fuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuse, "TOLERANCE", 1e9)


@pytest.mark.parametrize(
    "body", (*FUSED, *NOT_FUSED, reader_moved_behind_the_overwriting), ids=lambda body: body.__name__
)
def test_result_is_the_oracles(body: Body) -> None:
    q = build(body)
    for seed in (1, 2, 3):
        args = data(seed)
        kept = args[0].clone()
        for ours, theirs in zip(tensors(q(*args)), tensors(oracle(q, *args)), strict=True):
            assert sqnr(theirs, ours) > 30
        assert torch.equal(args[0], kept)


@pytest.mark.parametrize("body", FUSED, ids=lambda body: body.__name__)
def test_is_fused(body: Body) -> None:
    assert adds_fused(build(body))


@pytest.mark.parametrize("body", ALWAYS_APART, ids=lambda body: body.__name__)
def test_residual_that_lives_on_is_not_fused(body: Body) -> None:
    assert not adds_fused(build(body))


@pytest.mark.parametrize("body", FUSED, ids=lambda body: body.__name__)
def test_fused_and_not_fused_agree(body: Body, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused, a value is rounded once less: at most half a step of the convolution's own output before the sum.

    That is an error of the unfused form. Of the output it is at most one step (its own rounding) and half a step
    of each value that is no more rounded, a scale that is no larger than about that of the output.
    """
    fused = build(body)
    monkeypatch.setattr(backend, "fuse", lambda *_: 0)
    apart = build(body)
    assert not adds_fused(apart)
    step = output_step(fused)
    assert step is not None
    difference = (fused(*data()) - apart(*data())).abs() / step
    assert (difference > 1.01).float().mean() <= 0.02
    assert difference.max() <= 3
    assert sqnr(apart(*data()), fused(*data())) > 30
