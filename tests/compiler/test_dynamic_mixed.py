"""Dynamic layers beside static ones, copies, refusals and errors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import ConfigError, ModelError, QuantConfig
from fxquant.backends.base.dynamic_layer import DynamicLayer
from fxquant.compiler.numerics.metrics import sqnr

from .dynamic_toys import Branching, Tagger, dynamic, near, overrides, rows, seeded


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
    assert "4 bits" in rows(few)["embedding"].kernel


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
    assert all(m.kernel == "plain torch ops" for m in reference.module.modules() if isinstance(m, DynamicLayer))


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
        ({"config": QuantConfig(overrides={nn.Conv2d: "dynamic"}), "backend": "x86"}, "only for kernel size 1"),
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
        (nn.Embedding(8, 16, max_norm=1.0), "max_norm"),
        (nn.EmbeddingBag(8, 16, mode="max"), "maximum"),
        (nn.Conv2d(8, 8, 3), "faster in fp32: 72 products"),
        (nn.Bilinear(8, 8, 4), "knows no layer Bilinear"),
    ],
)
def test_reasons(module: nn.Module, reason: str) -> None:
    row = rows(dynamic(beside(module)))["given"]
    assert row.precision == "fp32" and reason in row.reason


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.LSTM(8, 16, proj_size=4), "proj_size"),
        (nn.RNN(8, 16), "no kernel for rnn with int8 weights; there are for conv1d"),
    ],
)
def test_reasons_of_x86(module: nn.Module, reason: str) -> None:
    row = rows(dynamic(beside(module), backend="x86"))["given"]
    assert row.precision == "fp32" and reason in row.reason


def beside(module: nn.Module) -> nn.Module:
    """A model that holds ``module``, and a layer that can be quantized."""

    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.given, self.layer = module, nn.Linear(8, 8)

        def forward(self, *args: Any) -> Any:
            return self.layer(*args)

    return Beside()


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
