"""Every step gives the bits of an integer reference in plain torch, on every instruction set of this machine."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxquant.backends.llvm.codegen.isa import Isa
from fxquant.backends.llvm.codegen.isas import available
from fxquant.backends.llvm.lowering.programs import PlannedProgram

from ...models.layers import ConvBNAct, SqueezeExcite, relu, silu
from .support import check_steps, frozen

ISAS = pytest.mark.parametrize("isa", available(), ids=lambda isa: isa.name)


class Net(nn.Module):
    """Most kinds of steps: entry, depthwise of each stride, groups, gate, pools, sums, joins, transposed, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBNAct(3, 20, 3, 2)
        self.wide = ConvBNAct(20, 70, 1, act=silu)
        self.deep = nn.ModuleList(
            ConvBNAct(70, 70, kernel, stride, 70, act=nn.Hardswish) for kernel, stride in ((3, 1), (5, 2), (7, 1))
        )
        self.gate = SqueezeExcite(70, 12, relu, nn.Sigmoid)
        self.narrow = ConvBNAct(70, 30, 1, act=None)
        self.same = ConvBNAct(30, 30, 3, 1, 3, act=None)
        self.dilated = nn.Conv2d(30, 18, 3, padding=2, dilation=2)
        self.pool, self.average = nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2)
        self.up = nn.ConvTranspose2d(48, 24, 3, 2, 1)
        self.head = nn.Linear(24, 11)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(self.stem(x))
        for layer in self.deep:
            x = layer(x)
        x = self.narrow(self.gate(x))
        x = torch.cat((x + self.same(x), torch.tanh(self.dilated(x))), 1)
        x = self.up(self.pool(x))
        x = torch.nn.functional.leaky_relu(self.average(x), 0.1)
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def program():  # type: ignore[no-untyped-def]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return frozen(Net(), [(torch.randn(2, 3, 37, 45),) for _ in range(2)])


@ISAS
@pytest.mark.parametrize("shape", [(1, 3, 37, 45), (3, 3, 32, 40)], ids=str)
def test_every_step_is_exact(program, isa: Isa, shape: tuple[int, ...]) -> None:  # type: ignore[no-untyped-def]
    assert check_steps(program, (torch.randn(shape),), isa) > 15


@pytest.mark.parametrize("shape", [(2, 3, 37, 45), (1, 3, 24, 31)], ids=str)
def test_one_answer_everywhere(program, shape: tuple[int, ...]) -> None:  # type: ignore[no-untyped-def]
    """The result depends neither on the instruction set, nor on the threads, nor on batch mates."""
    x = torch.randn(shape)
    runs = [PlannedProgram(program, isa) for isa in available()]
    expected = runs[0](x)
    assert all(torch.equal(run(x), expected) for run in runs[1:])
    threads = torch.get_num_threads()
    try:
        for count in (1, 3, 5):
            torch.set_num_threads(count)
            assert torch.equal(runs[0](x), expected)
    finally:
        torch.set_num_threads(threads)
    mates = runs[0](torch.cat([torch.randn(1, *shape[1:]), x]))
    assert torch.equal(mates[1:], expected)
    assert torch.equal(runs[0](x.contiguous(memory_format=torch.channels_last)), expected)
