"""`compile(model, scheme="dynamic")` from outside: results, reasons, refusals."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant import ConfigError, ModelError, QuantConfig, QuantizedModule, StateError
from fxquant.backends.base.dynamic_layer import DynamicLayer, ReferenceLayer
from fxquant.compiler.numerics.metrics import sqnr


class Tagger(nn.Module):
    """A bit of everything that has weights: int64 [N,T] -> [N,T,5]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.lstm = nn.LSTM(32, 64, batch_first=True)
        self.body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 48))
        self.head = nn.Linear(48, 5)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(self.lstm(self.embedding(ids))[0]))
        return out


class Branching(nn.Module):
    """Cannot be traced: its way depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.up(x)
        if x.mean() > 0:
            x = x * 2
        if mask is not None:
            x = x * mask
        out: Tensor = self.down(x)
        return out

    def twice(self, x: Tensor) -> Tensor:
        return self(self(x))


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build().eval()


def dynamic(model: nn.Module, **options: Any) -> QuantizedModule:
    return fxquant.compile(model, scheme="dynamic", **options)


def near(model: nn.Module, q: nn.Module, *args: Any, least: float = 28, **kwargs: Any) -> None:
    with torch.no_grad():
        expected = model(*args, **kwargs)
    for _ in range(3):  # the first call checks TorchScript, the second uses it, the third is optimised
        assert sqnr([expected], [q(*args, **kwargs)]) > least


def rows(q: QuantizedModule) -> dict[str, fxquant.Row]:
    return {row.node: row for row in q.report.rows}


def overrides(**entries: Any) -> QuantConfig:
    return QuantConfig(overrides=dict[Any, Any](entries))


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
    assert found["lstm"].precision == "int8 dynamic" and "linear_dynamic" in found["lstm"].kernel
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
    assert found["4"].precision == "fp16" and "next to the output" in found["4"].reason
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


def test_mixed_with_static() -> None:
    class ConvThenLSTM(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
            self.lstm = nn.LSTM(16 * 8, 32, batch_first=True)
            self.head = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5))

        def forward(self, x: Tensor) -> Tensor:
            columns = self.conv(x).flatten(1, 2).transpose(1, 2)
            out: Tensor = self.head(self.lstm(columns)[0])
            return out

    model = seeded(ConvThenLSTM)
    data = [torch.randn(2, 1, 16, 24) for _ in range(3)]
    config = QuantConfig(overrides={nn.LSTM: "dynamic", "head": "fp16"})
    for executor in ("auto", "eager"):
        q = fxquant.compile(model, calibration=data, config=config, executor=executor)
        near(model, q, data[0], least=25)
        near(model, q, torch.randn(5, 1, 16, 24), least=25)
    found = rows(q)
    assert found["conv.0"].precision == "int8"
    assert found["lstm"].precision == "int8 dynamic"
    assert found["head.0"].op == "linear + relu" and found["head.0"].precision == "fp16"
    assert q.report.compiled_bytes < 0.32 * q.report.fp32_bytes


def test_static_model_with_a_dynamic_encoder() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(32, 32), nn.TransformerEncoderLayer(32, 4, 64), nn.Linear(32, 4)))
    data = [torch.randn(5, 2, 32) for _ in range(3)]
    q = fxquant.compile(model, calibration=data, config=QuantConfig(overrides={"1": "dynamic"}))
    near(model, q, data[0], least=25)
    assert {r.precision for n, r in rows(q).items() if n.startswith("1.") and r.op == "linear"} == {"int8 dynamic"}


def test_weight_bits_and_granularity() -> None:
    model = seeded(Tagger)
    ids = torch.randint(50, (3, 7))
    coarse = dynamic(model, config=QuantConfig(weight="per_tensor_symmetric"))
    near(model, coarse, ids, least=24)
    few = dynamic(model, config=overrides(embedding=QuantConfig(weight_bits=4)))
    near(model, few, ids, least=15)
    assert "4bit" in rows(few)["embedding"].kernel


def test_numbers_beyond_fp16_keep_a_layer_in_fp32() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))
    with torch.no_grad():
        model.get_parameter("0.weight")[0, 0] = 1e6
    found = rows(dynamic(model, dtype=torch.float16))
    assert found["0"].precision == "fp32" and "out of the range of fp16" in found["0"].reason
    assert found["1"].precision == "fp16"


def test_threads_share_a_module() -> None:
    model = seeded(Tagger)
    q = dynamic(model)
    inputs = [torch.randint(50, (n % 3 + 1, 5)) for n in range(24)]
    expected = [q(x) for x in inputs]
    fresh = dynamic(model)
    with ThreadPoolExecutor(4) as pool:
        for ours, theirs in zip(pool.map(fresh, inputs), expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_copies_share_what_is_packed() -> None:
    model = seeded(Tagger)
    q = dynamic(model)
    near(model, copy.deepcopy(q), torch.randint(50, (2, 3)))


def test_the_reference_backend_agrees() -> None:
    """It rounds weights and inputs alike, but keeps the states of recurrent layers."""
    model = seeded(Tagger)
    ids = torch.randint(50, (4, 9))
    x86, reference = dynamic(model), dynamic(model, backend="reference")
    assert sqnr([reference(ids)], [x86(ids)]) > 30
    assert all(m.kernel == "reference" for m in reference.module.modules() if isinstance(m, DynamicLayer))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": torch.bfloat16}, "Valid: torch.int8, torch.float16"),
        ({"dtype": "int8"}, "Valid: torch.int8, torch.float16"),
        ({"calibration": [torch.randn(3, 16)]}, "reads no calibration data"),
        ({"config": QuantConfig(smooth=True)}, "smooth=True is for scheme"),
        ({"config": QuantConfig(rounding="learned")}, "rounding='learned' needs calibration data"),
        ({"config": QuantConfig(activation="per_tensor_symmetric")}, "has no dynamic kernel: use 'per_tensor_affine'"),
        ({"config": QuantConfig(weight_bits=4), "dtype": torch.float16}, "are for integers"),
        ({"config": overrides(nope=None)}, "matches nothing"),
        ({"config": overrides(relu="dynamic")}, "names no layer whose weights are matrices"),
        ({"config": QuantConfig(overrides={nn.Conv2d: "dynamic"})}, "pytorch#70480"),
        ({"executor": "jit"}, "Valid: 'auto', 'eager', 'torchscript'"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 4, 3))
    with pytest.raises(ConfigError, match=message):
        dynamic(model, **options)


def test_torchscript_on_request() -> None:
    assert dynamic(seeded(Tagger).body, executor="torchscript") is not None  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"needs a graph, and there is none: .*'mask'"):
        dynamic(seeded(Branching), executor="torchscript")


def test_fp16_is_for_the_dynamic_scheme() -> None:
    with pytest.raises(ConfigError, match="is for scheme 'dynamic'"):
        fxquant.compile(nn.Linear(4, 4), scheme="static", dtype=torch.float16)
    with pytest.raises(ConfigError, match="nothing to observe"):
        fxquant.prepare(nn.Linear(4, 4), scheme="dynamic")


def test_nothing_to_quantize() -> None:
    with pytest.raises(ModelError, match=r"nothing to quantize.*\n.*0: no kernel for conv_transpose2d"):
        dynamic(nn.Sequential(nn.ConvTranspose2d(4, 4, 2), nn.ReLU()))
    with pytest.raises(ModelError, match="nothing to quantize"):
        dynamic(nn.ReLU())


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.LSTM(8, 16, proj_size=4), "proj_size"),
        (nn.RNN(8, 16), "no kernel for rnn with int8 weights; there are for conv1d"),
        (nn.Embedding(8, 16, max_norm=1.0), "max_norm"),
        (nn.EmbeddingBag(8, 16, mode="max"), "maximum"),
        (nn.Conv2d(8, 8, 3), "pytorch#70480"),
        (nn.Bilinear(8, 8, 4), "knows no layer Bilinear"),
    ],
)
def test_reasons(module: nn.Module, reason: str) -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.given, self.layer = module, nn.Linear(8, 8)

        def forward(self, *args: Any) -> Any:
            return self.layer(*args)

    row = rows(dynamic(Beside()))["given"]
    assert row.precision == "fp32" and reason in row.reason


@pytest.mark.parametrize(
    ("build", "given", "message"),
    [
        (
            lambda: nn.Linear(8, 4),
            torch.randn(3, 8, dtype=torch.float64),
            r"Layer '1' .* failed on float64 \(3, 8\).*in_features 8",
        ),
        (lambda: nn.Linear(8, 4), torch.randn(3, 9), r"Layer '1' .* failed on float32 \(3, 9\).*in_features 8"),
        (lambda: nn.LSTM(8, 4), torch.randn(3, 2, 9), r"Layer '1' .*input_size 8"),
        (lambda: nn.Embedding(8, 4), torch.tensor([[9]]), r"Layer '1' .* failed on int64 \(1, 1\).*num_embeddings 8"),
        (lambda: nn.Linear(8, 4), torch.full((3, 8), torch.nan), r"Layer '1'"),
    ],
)
@pytest.mark.parametrize("warm", [False, True])
def test_a_call_that_fails_names_the_layer(
    build: Callable[[], nn.Module], given: Tensor, message: str, warm: bool
) -> None:
    q = dynamic(nn.Sequential(nn.Identity(), build()))
    if warm:
        good = torch.tensor([[1]]) if not given.is_floating_point() else torch.randn(*given.shape[:-1], 8)
        q(good)
        q(good)
    with pytest.raises(fxquant.CallError, match=message):
        q(given)


def test_an_error_of_the_model_itself_is_its_own() -> None:
    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor, flag: bool = False) -> Tensor:
            x = self.layer(x)
            if x.shape[0] > 2:
                raise ValueError("at most two")
            return x

    with pytest.raises(ValueError, match="at most two"):
        dynamic(Picky())(torch.randn(3, 8))
