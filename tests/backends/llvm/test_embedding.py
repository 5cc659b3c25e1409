"""Embeddings and bags of them: rows of 8 and 4 bits, fp16 and fp32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import CallError, QuantConfig
from fxquant.backends.llvm.backend import LLVMBackend
from fxquant.backends.llvm.codegen.isas import available
from fxquant.backends.llvm.lowering.gather import table_of
from fxquant.passes.dynamic.layer_maker import LayerMaker
from fxquant.passes.dynamic.plan import LayerRequest

from .support import frozen, planned

COUNT = 50
KINDS: dict[str, tuple[torch.dtype, QuantConfig]] = {
    "8 bits": (torch.int8, QuantConfig()),
    "4 bits": (torch.int8, QuantConfig(weight_bits=4)),
    "fp16": (torch.float16, QuantConfig()),
}
LAYERS: dict[str, Any] = {
    "embedding": lambda size: nn.Embedding(COUNT, size),
    "sum": lambda size: nn.EmbeddingBag(COUNT, size, mode="sum"),
    "mean": lambda size: nn.EmbeddingBag(COUNT, size, mode="mean"),
    "sum, padding": lambda size: nn.EmbeddingBag(COUNT, size, mode="sum", padding_idx=0),
    "mean, padding": lambda size: nn.EmbeddingBag(COUNT, size, mode="mean", padding_idx=1),
}


def ids(*shape: int) -> Tensor:
    """Many of them are the padding of the layers above; the first row of two axes is nothing else."""
    found = torch.randint(COUNT, shape) * (torch.rand(shape) > 0.3)
    found[0] = 0
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [20, 64, 150])
@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_as_the_reference_on_every_instruction_set(name: str, size: int, kind: str) -> None:
    torch.manual_seed(0)
    dtype, config = KINDS[kind]
    layer, given = LAYERS[name](size).eval(), ids(6, 9)
    outputs, exact = [], given
    for isa in available():
        made = LayerMaker(LLVMBackend(isa=isa)).make(layer, LayerRequest(dtype, config), False)
        assert not isinstance(made, str) and kind in made.compiled.kernel
        outputs.append(made.compiled(given))
        exact = made.reference(given)
    assert torch.allclose(outputs[0], exact, atol=1e-5)  # torch adds in another order
    assert all(torch.equal(outputs[0], o) for o in outputs[1:])


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_bags_of_different_sizes_and_weights(kind: str) -> None:
    torch.manual_seed(0)
    dtype, config = KINDS[kind]
    offsets, weights = torch.tensor([0, 3, 3, 11]), torch.rand(20)
    calls: list[tuple[nn.Module, tuple[Any, ...]]] = [
        (nn.EmbeddingBag(COUNT, 20, mode="sum"), (ids(20), offsets)),
        (nn.EmbeddingBag(COUNT, 20, mode="mean", padding_idx=0), (ids(20), offsets)),
        (nn.EmbeddingBag(COUNT, 20, mode="sum", padding_idx=0), (ids(20), offsets, weights)),
        (nn.EmbeddingBag(COUNT, 20, mode="sum", include_last_offset=True), (ids(20), torch.tensor([0, 4, 20]))),
        (nn.EmbeddingBag(COUNT, 20, mode="sum"), (ids(4, 5), None, weights.view(4, 5))),
    ]
    for layer, given in calls:
        made = LayerMaker(LLVMBackend()).make(layer.eval(), LayerRequest(dtype, config), False)
        assert not isinstance(made, str)
        assert torch.allclose(made.compiled(*given), made.reference(*given), atol=1e-5)


@torch.no_grad()
def test_indices_of_other_types_and_layouts() -> None:
    torch.manual_seed(0)
    layer = nn.Embedding(COUNT, 24).eval()
    q, given = fxquant.compile(layer, scheme="dynamic"), ids(7, 3)
    expected = q(given)
    assert torch.equal(q(given.int()), expected)
    assert torch.equal(q(given.T).transpose(0, 1), expected)
    assert torch.equal(q(given[:, 0]), expected[:, 0])
    assert q(given[:0]).shape == (0, 3, 24)


@pytest.mark.parametrize(
    ("given", "why"),
    [([COUNT], r"index out of range in self: 50, of 50"), ([-1], "out of range"), ([1.0], "must be int64 or int32")],
    ids=str,
)
def test_indices_that_are_none_are_refused(given: list[Any], why: str) -> None:
    q = fxquant.compile(nn.Embedding(COUNT, 8).eval(), scheme="dynamic")
    q(torch.tensor([1]))
    with pytest.raises(CallError, match=why):
        q(torch.tensor(given))


class Positions(nn.Module):
    """Indices from an input, from a buffer and computed."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions, self.kinds = nn.Embedding(COUNT, 16), nn.Embedding(20, 16), nn.Embedding(2, 16)
        self.numbers = nn.Buffer(torch.arange(20)[None])
        self.head = nn.Linear(16, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(self.numbers[:, : ids.shape[1]]) + self.kinds(ids % 2)
        return self.head(x)


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
@torch.no_grad()
def test_indices_from_anywhere(scheme: str) -> None:
    torch.manual_seed(0)
    model = Positions().eval()
    options: dict[str, Any] = {"calibration": [(ids(3, 9),)]} if scheme == "static" else {}
    q = fxquant.compile(model, scheme=scheme, backend="llvm", **options)  # type: ignore[arg-type]
    for given in (ids(3, 9), ids(3, 9), ids(2, 12)):
        error = (q(given) - model(given)).square().mean() / model(given).square().mean()
        assert error < 3e-3


@torch.no_grad()
def test_tables_in_fp32_are_read_where_they_are() -> None:
    torch.manual_seed(0)
    model, given = nn.Sequential(nn.Embedding(COUNT, 32), nn.Linear(32, 8)).eval(), ids(2, 5)
    program = frozen(model, [(given,)])
    table = program.module.get_submodule("0").weight
    assert isinstance(table, Tensor)
    plan = planned(program, (given,))
    assert any(packed.memory.data_ptr() == table.data_ptr() for packed in plan.packed)
    odd = table_of(torch.randn(3, 5), lambda raw: torch.cat([raw, raw])[: raw.numel()])
    assert odd.stride == 20  # copied to memory that may be read past its end


@torch.no_grad()
def test_bags_refuse_indices_that_are_none() -> None:
    q = fxquant.compile(nn.EmbeddingBag(COUNT, 8, mode="sum").eval(), scheme="dynamic")
    with pytest.raises(CallError, match="out of range"):
        q(torch.tensor([3, -1]), torch.tensor([0]))


@torch.no_grad()
def test_indices_that_get_empty_on_the_way() -> None:
    class Rest(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.head = nn.Embedding(COUNT, 16), nn.Linear(16, 5)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.tokens(ids[:, 1:]))

    q = fxquant.compile(Rest().eval(), scheme="dynamic")
    for length in (4, 1, 1):
        assert q(ids(2, length)).shape == (2, length - 1, 5)
