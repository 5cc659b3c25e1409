"""Dynamic quantization: models, merged and tied layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant import QuantConfig, StateError
from fxquant.backends.base.dynamic_layer import DynamicLayer, ReferenceLayer
from fxquant.compiler.numerics.metrics import sqnr

from .dynamic_toys import Branching, Tagger, dynamic, near, rows, seeded


@pytest.mark.parametrize("executor", ["auto", "eager"])
@pytest.mark.parametrize(("dtype", "least"), [(torch.int8, 28), (torch.float16, 55)], ids=str)
def test_a_model_of_many_layers(dtype: torch.dtype, least: float, executor: str) -> None:
    model = seeded(Tagger)
    before = copy.deepcopy(model.state_dict())
    q = dynamic(model, dtype=dtype, executor=executor)
    for shape in ((3, 7), (1, 1), (5, 12)):
        near(model, q, torch.randint(50, shape), least=least)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))
    assert not any(isinstance(m, DynamicLayer) for m in model.modules())


def test_report() -> None:
    q = dynamic(seeded(Tagger))
    found = rows(q)
    assert found["lstm"].precision == "int8 dynamic" and "a scale per row" in found["lstm"].kernel
    assert found["body.0"].op == "linear + relu" and "relu" in found["body.0"].kernel
    assert "body.1" not in found
    assert found["lstm"].fp32_bytes == 4 * (256 * 32 + 256 * 64 + 2 * 256)
    # One byte a weight, four a scale and a bias.
    assert found["lstm"].compiled_bytes == 256 * 32 + 256 * 64 + 4 * 2 * 256 + 4 * 2 * 256
    assert q.report.compiled_bytes == sum(row.compiled_bytes for row in q.report.rows)
    assert q.report.fp32_bytes == sum(row.fp32_bytes for row in q.report.rows)
    assert all(row.reason for row in q.report.rows if row.precision == "fp32")
    assert "int8 dynamic" in str(q) and "KiB" in str(q)


def test_the_last_layers_are_fp16_while_small() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 4))

    found = rows(dynamic(seeded(build)))
    assert found["4"].precision == "fp16" and "near the output" in found["4"].reason
    assert found["2"].precision == "int8 dynamic"
    asked = rows(dynamic(seeded(build), config=QuantConfig(overrides={"4": "dynamic"})))
    assert asked["4"].precision == "int8 dynamic"


def test_what_cannot_be_traced_is_swapped_where_it_stands() -> None:
    model: Any = seeded(Branching)
    q: Any = dynamic(model)
    x = torch.randn(4, 16)
    near(model, q, x)
    near(model, q, -x.abs(), mask=torch.rand(4, 32))
    assert "not traced" in q.report.remark and "'mask'" in q.report.remark
    assert isinstance(q.module, Branching)
    with torch.no_grad():
        expected = model.twice(x)
        assert sqnr([expected], [q.module.twice(x)]) > 25
    with pytest.raises(StateError, match="not traced"):
        _ = q.graph


@pytest.mark.parametrize(
    ("build", "args"),
    [
        (lambda: nn.Linear(16, 8), (torch.randn(3, 16),)),
        (lambda: nn.GRU(16, 8), (torch.randn(5, 3, 16),)),
        (lambda: nn.MultiheadAttention(16, 2), (torch.randn(5, 3, 16),) * 3),
        (lambda: nn.EmbeddingBag(16, 8), (torch.arange(12).view(3, 4),)),
    ],
)
def test_a_layer_alone(build: Callable[[], nn.Module], args: tuple[Any, ...]) -> None:
    near(model := seeded(build), dynamic(model), *args)


def test_inputs_that_are_no_tensors() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x: Tensor, scale: float, names: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"y": self.layer(x) * scale, "z": names["bias"] + x}

    model = seeded(Scaled)
    near(model, dynamic(model), torch.randn(3, 16), 2.0, {"bias": torch.randn(16)})


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # the float encoder's own
def test_torch_encoders_take_no_fused_path() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    q = dynamic(model)
    x, padded = torch.randn(3, 6, 32), torch.arange(6) >= torch.tensor([[6], [4], [2]])
    near(model, q, x)
    with torch.no_grad():
        expected = model(x, src_key_padding_mask=padded)
    kept = ~padded
    assert sqnr([expected[kept]], [q(x, src_key_padding_mask=padded)[kept]]) > 28
    # Two projections, two feed-forward layers for each of two layers.
    assert [r.precision for r in q.report.rows if r.op == "linear"] == ["int8 dynamic"] * 8


def test_transformer_with_decoder() -> None:
    torch.manual_seed(0)
    model = nn.Transformer(32, 4, 2, 2, 64, batch_first=True).eval()
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    near(model, dynamic(model), torch.randn(2, 7, 32), torch.randn(2, 5, 32), tgt_mask=mask)


def test_attention_that_stays_has_a_reason() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2, add_zero_attn=True)
            self.layer = nn.Linear(16, 64)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(self.attention(x, x, x)[0])
            return out

    model = seeded(Wrapped)
    q = dynamic(model)
    near(model, q, torch.randn(5, 2, 16))
    assert "add_zero_attn" in rows(q)["attention"].reason
    assert rows(q)["attention"].precision == "fp32"


class TiedLM(nn.Module):
    """Output projection tied to the embedding; one layer used twice."""

    def __init__(self, functional: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(60, 32)
        self.block = nn.Linear(32, 32)
        self.functional = functional
        if not functional:
            self.out = nn.Linear(32, 60, bias=False)
            self.out.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.tanh(self.block(torch.tanh(self.block(self.embedding(ids)))))
        out: Tensor = F.linear(x, self.embedding.weight) if self.functional else self.out(x)
        return out


@pytest.mark.parametrize("functional", [False, True])
def test_tied_weights_are_rounded_once(functional: bool) -> None:
    model = seeded(lambda: TiedLM(functional))
    q = dynamic(model, backend="reference")
    near(model, q, torch.randint(60, (3, 4)))
    layers = {m for m in q.graph.modules() if isinstance(m, ReferenceLayer)}
    assert len(layers) == 3
    weights = [m.spec[0].weights["weight"] for m in layers]
    assert len({id(w) for w in weights}) == 2
    near(model, dynamic(model), torch.randint(60, (3, 4)))


def test_a_layer_at_two_places_is_one() -> None:
    layer = seeded(lambda: nn.Linear(16, 16))
    model = nn.Sequential(layer, nn.Tanh(), layer)
    q = dynamic(model)
    near(model, q, torch.randn(3, 16))
    assert len({m for m in q.module.modules() if isinstance(m, DynamicLayer)}) == 1


def test_merging_is_reported() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(32, 32) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))

    model = seeded(Attention)
    q = dynamic(model)
    near(model, q, torch.randn(2, 6, 32))
    assert "merged: q, k, v" in rows(q)["q_merged"].reason
