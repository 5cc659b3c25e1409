"""What stays in fp32: products one by one in a fixed order, and attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant import QuantConfig
from fxquant.backends.llvm.codegen.isas import available
from fxquant.backends.llvm.lowering.steps import TorchStep
from fxquant.compiler.core.tensors import tensors_of

from ...compiler.toys import Lambda
from .support import check_steps, frozen, planned

CONFIG = QuantConfig(observer="minmax", mixed_precision=False, overrides={"kept": None})
LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "convolution": (nn.Conv2d(8, 21, 3, 2, 1), (2, 3, 9, 11)),
    "groups": (nn.Conv2d(8, 12, 3, groups=4, padding=1), (1, 3, 6, 7)),
    "depthwise": (nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False), (1, 3, 8, 9)),
    "even window": (nn.Conv2d(8, 5, (2, 4), padding="same", dilation=(1, 2)), (1, 3, 8, 9)),
    "transposed": (nn.ConvTranspose2d(8, 5, 3, 2, 1, groups=1), (1, 3, 5, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_that_stay_in_fp32(name: str) -> None:
    layer, shape = LAYERS[name]
    torch.manual_seed(0)
    model = Lambda(lambda m, x: torch.relu(m.kept(torch.relu(m.first(x)))), first=nn.Conv2d(3, 8, 1), kept=layer).eval()
    x = torch.randn(shape)
    program = frozen(model, [(x,)], config=CONFIG)
    for isa in available():
        plan = planned(program, (x,), isa)
        assert not any(isinstance(s, TorchStep) for s in plan.steps)
        check_steps(program, (x,), isa)
    q = fxquant.compile(model, calibration=[x], config=CONFIG)
    with torch.no_grad():
        assert torch.allclose(q(x), program.module(x), atol=1e-4)


def attend(m: Any, x: Tensor, **options: Any) -> Tensor:
    heads = m.qkv(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], **options)
    return m.out(mixed.transpose(1, 2).flatten(2))


def shared_keys(m: Any, x: Tensor, heads: int = 2, **options: Any) -> Tensor:
    """Four heads of queries, and fewer of keys and values."""
    q, k, v = (t.unflatten(-1, (4, -1)).transpose(1, 2) for t in m.qkv(x).chunk(3, -1))
    k, v = k[:, :heads], v[:, :heads]
    return m.out(F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **options).transpose(1, 2).flatten(2))


def by_head(m: Any, x: Tensor) -> Tensor:
    """The same without a batch axis."""
    q, k, v = (t.unflatten(-1, (4, -1)).transpose(0, 1) for t in m.qkv(x[1]).chunk(3, -1))
    mixed = F.scaled_dot_product_attention(q, k[:2], v[:2], enable_gqa=True)
    return m.out(mixed.transpose(0, 1).flatten(1))


def spelled(m: Any, x: Tensor) -> Tensor:
    q, k, v = (t.unflatten(-1, (4, -1)).transpose(1, 2) for t in m.qkv(x).chunk(3, -1))
    weights = torch.softmax(torch.matmul(q, k.transpose(-1, -2)) * 0.25 + m.bias, -1)
    return m.out((weights @ v).transpose(1, 2).flatten(2))


BOOL = torch.tensor([[True] * 7, [True] * 4 + [False] * 3]).reshape(2, 1, 1, 7)
FORWARDS = {
    "plain": attend,
    "causal": lambda m, x: attend(m, x, is_causal=True),
    "scale": lambda m, x: attend(m, x, scale=0.5),
    "mask": lambda m, x: attend(m, x, attn_mask=m.mask),
    "bias": lambda m, x: attend(m, x, attn_mask=m.bias),
    "bias of a layer": lambda m, x: attend(m, x, attn_mask=m.out(m.qkv(x)[..., :64])[..., :7][:, None]),
    "shared keys": shared_keys,
    "one key, causal": lambda m, x: shared_keys(m, x, 1, is_causal=True),
    "shared keys, bias": lambda m, x: shared_keys(m, x, attn_mask=m.bias),
    "shared keys, no batch": by_head,
    "as many keys as queries": lambda m, x: shared_keys(m, x, 4, attn_mask=m.mask),
    "spelled": spelled,
    "computed mask": lambda m, x: attend(m, x, attn_mask=(x.sum(-1) > 0)[:, None, None, :]),
    "two axes": lambda m, x: m.out(m.qkv(x)[..., :64] @ m.matrix),
}


@pytest.mark.parametrize("name", FORWARDS)
def test_attention(name: str) -> None:
    """Torch computes no more than a mask; the same bits on all instruction sets, which torch gives up to rounding."""
    torch.manual_seed(0)
    model = Lambda(FORWARDS[name], qkv=nn.Linear(24, 192), out=nn.Linear(64, 24), mask=BOOL,
                   bias=torch.randn(4, 7, 7), matrix=torch.randn(64, 64)).eval()  # fmt: skip
    x = torch.randn(2, 7, 24)
    program = frozen(model, [(x,)], config=QuantConfig(mixed_precision=False))
    results: list[Tensor] = []
    for isa in available():
        plan = planned(program, (x,), isa)
        if name != "computed mask":
            assert not any(isinstance(s, TorchStep) for s in plan.steps)
        check_steps(program, (x,), isa)
        (placeholder,) = [n for n in program.module.graph.nodes if n.op == "placeholder"]
        results += tensors_of(plan.run({placeholder: x}))
    assert all(torch.equal(results[0], r) for r in results[1:])
    with torch.no_grad():
        (exact,) = tensors_of(program.module(x))
        assert float((results[0] - exact).abs().max()) < 0.02 * float(results[0].abs().max())
