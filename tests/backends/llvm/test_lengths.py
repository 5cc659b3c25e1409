"""Sequences of any length: kernels read lengths at run time, and compute the same on every instruction set."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.backends.base.program import FrozenProgram
from fxquant.backends.llvm.codegen.isa import Isa
from fxquant.backends.llvm.codegen.isas import available
from fxquant.compiler.capture.capture import capture
from fxquant.compiler.capture.normalize import normalize

from .support import BEST, planned

LENGTHS = (1, 2, 3, 7, 15, 16, 17, 31, 33, 48, 63, 64, 65, 100, 129)
DIM, HEADS = 48, 3


class Attention(nn.Module):
    """All in fp32: attention by torch's function, and spelled."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = x.chunk(3, -1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (q, k, v))
        first = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        scores = (q @ k.transpose(-2, -1) * 0.25 + mask).softmax(-1)
        return torch.cat((first, scores @ v, F.scaled_dot_product_attention(q, k, v, is_causal=True)), -1)


def program(model: nn.Module) -> FrozenProgram:
    gm = capture(model.eval())
    normalize(gm)
    return FrozenProgram(gm, ((), {}))


def given(length: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    torch.manual_seed(length)
    mask = torch.zeros(length, length)
    mask[:, length // 2 + 1 :] = -float("inf")
    return torch.randn(batch, length, 3 * DIM), mask


def run(args: tuple[Tensor, Tensor], isa: Isa = BEST) -> Tensor:
    made = program(Attention())
    nodes = [n for n in made.module.graph.nodes if n.op == "placeholder"]
    result: Tensor = planned(made, args, isa).run(dict(zip(nodes, args, strict=True)))
    return result


@pytest.mark.parametrize("length", LENGTHS)
def test_attention_of_any_length(length: int) -> None:
    args = given(length)
    outputs = [run(args, isa) for isa in available()]
    assert torch.allclose(outputs[0], Attention()(*args), atol=2e-6)
    assert all(torch.equal(outputs[0], o) for o in outputs[1:])


def kernels(length: int) -> set[str]:
    return {repr(made.kernel) for made in planned(program(Attention()), given(length)).made.values()}


def test_lengths_share_their_kernels() -> None:
    assert kernels(101) == kernels(102) and kernels(200) == kernels(210)
    known = set.union(*map(kernels, range(33, 97, 9)))
    assert set.union(*map(kernels, range(33, 97))) <= known | kernels(64)
    each = len(kernels(64))
    assert len(set.union(*map(kernels, range(1, 129)))) < 8 * each


def test_a_cache_that_grows() -> None:
    """One query, and one more key in each step."""

    class Step(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v)

    made = program(Step())
    nodes = [n for n in made.module.graph.nodes if n.op == "placeholder"]
    torch.manual_seed(0)
    k, v = torch.randn(2, 1, 3, 40, 16).unbind(0)
    seen = set()
    for length in range(17, 40):
        args = torch.randn(1, 3, 1, 16), k[:, :, :length].contiguous(), v[:, :, :length].contiguous()
        plan = planned(made, args)
        seen |= {repr(kernel.kernel) for kernel in plan.made.values()}
        assert torch.allclose(plan.run(dict(zip(nodes, args, strict=True))), Step()(*args), atol=2e-6)
    assert len(seen) < 12
