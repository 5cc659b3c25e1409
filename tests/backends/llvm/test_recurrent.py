"""Recurrent layers: all options of torch, as the same layers with rounded weights, and row by row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import fxquant
from fxquant.backends.llvm.backend import LLVMBackend
from fxquant.backends.llvm.codegen.isas import available
from fxquant.compiler.core.tensors import tensors_of
from fxquant.compiler.numerics.metrics import sqnr
from fxquant.passes.dynamic.layer_maker import LayerMaker
from fxquant.passes.dynamic.plan import LayerRequest

TIME, BATCH, INPUTS, SIZE = 5, 3, 20, 24
LAYERS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "lstm": (nn.LSTM, {}),
    "lstm, two layers and directions": (nn.LSTM, {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    "lstm, projections": (nn.LSTM, {"proj_size": 8, "bidirectional": True}),
    "lstm, no bias": (nn.LSTM, {"bias": False}),
    "gru": (nn.GRU, {"num_layers": 2, "bidirectional": True}),
    "rnn": (nn.RNN, {"batch_first": True}),
    "rnn, relu": (nn.RNN, {"nonlinearity": "relu"}),
}
CELLS = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn": nn.RNNCell}
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


def layer_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    make, options = LAYERS[name]
    return make(INPUTS, SIZE, **options).eval()


def check(expected: Any, given: Any, least: float = 37.0) -> None:
    """Int8 weights and rows leave about 40 dB and more; another order of steps or gates would leave nothing."""
    pairs = list(zip(tensors_of(expected), tensors_of(given), strict=True))
    assert pairs and [a.shape for a, _ in pairs] == [b.shape for _, b in pairs]
    assert min(sqnr([a], [b]) for a, b in pairs) > least


@pytest.mark.parametrize("dtype", [torch.int8, torch.float16], ids=str)
@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_calls_of_every_form(name: str, dtype: torch.dtype) -> None:
    layer = layer_of(name)
    q = fxquant.compile(layer, scheme="dynamic", dtype=dtype)
    least = 37.0 if dtype == torch.int8 else 60.0
    x = torch.randn(TIME, BATCH, INPUTS)
    output, state = layer(x)
    check((output, state), q(x), least)
    check(layer(x, state), q(x, state), least)
    check(layer(x[0]), q(x[0]), least)
    check(layer(x[:, :1]), q(x[:, :1]), least)


@pytest.mark.parametrize("lengths", [(5, 3, 1), (2, 5, 4)], ids=str)
@pytest.mark.parametrize("name", ["lstm, two layers and directions", "lstm, projections", "gru", "rnn"])
@torch.no_grad()
def test_packed_sequences(name: str, lengths: tuple[int, ...]) -> None:
    layer = layer_of(name)
    q = fxquant.compile(layer, scheme="dynamic")
    packed = pack_padded_sequence(torch.randn(TIME, BATCH, INPUTS), torch.tensor(lengths), enforce_sorted=False)
    (output, state), (ours, end) = layer(packed), q(packed)
    check((output.data, state), (ours.data, end))
    assert torch.equal(output.batch_sizes, ours.batch_sizes)
    (output, state), (ours, end) = layer(packed, state), q(packed, state)
    check((output.data, state), (ours.data, end))


@pytest.mark.parametrize("kind", CELLS)
@torch.no_grad()
def test_cells(kind: str) -> None:
    torch.manual_seed(0)
    cell, x = CELLS[kind](INPUTS, SIZE).eval(), torch.randn(BATCH, INPUTS)
    q = fxquant.compile(cell, scheme="dynamic")
    state = cell(x)
    check(state, q(x))
    check(cell(x, state), q(x, state))
    check(cell(x[0]), q(x[0]))


@pytest.mark.parametrize("name", ["lstm, two layers and directions", "gru"])
def test_one_answer(name: str) -> None:
    """The same bits on all instruction sets, and whatever else is in the batch."""
    layer, x = layer_of(name), torch.randn(4, 4, INPUTS)
    request = LayerRequest(torch.int8, fxquant.QuantConfig())
    results = []
    for isa in available():
        made = LayerMaker(LLVMBackend(isa=isa)).make(layer, request, False)
        assert not isinstance(made, str)
        results.append(tensors_of(made.compiled(x)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    q = fxquant.compile(layer, scheme="dynamic")
    alone = x[2:3] if name.startswith("lstm") else x[:, 2:3]
    assert torch.equal(q(alone)[0], q(x)[0][2:3] if name.startswith("lstm") else q(x)[0][:, 2:3])


@torch.no_grad()
def test_features_of_unlike_size() -> None:
    """Few weights of the input stay in fp16: large weights of small features would round the others away."""
    torch.manual_seed(0)
    layer, sizes = nn.LSTM(8, 256).eval(), torch.logspace(-3, 1, 8)
    layer.get_parameter("weight_ih_l0").div_(sizes)
    q = fxquant.compile(layer, scheme="dynamic")
    x = torch.randn(6, 4, 8) * sizes
    check(layer(x), q(x))
    assert "fp16 weights of the input" in q.report.rows[0].kernel


class Tagger(nn.Module):
    """States in and out, a result that nothing reads, and a layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LSTM(INPUTS, SIZE, batch_first=True)
        self.second = nn.GRU(SIZE, SIZE, batch_first=True)
        self.head = nn.Linear(SIZE, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, (h, c) = self.first(x)
        y, last = self.second(torch.relu(y), h * 0.5)
        y, _ = self.second(y)
        return self.head(y) + self.head(c[0])[:, None], last


def test_inside_of_a_plan() -> None:
    torch.manual_seed(0)
    model, x = Tagger().eval(), torch.randn(2, 7, INPUTS)
    q = fxquant.compile(model, scheme="dynamic")
    with torch.no_grad():
        for _ in range(2):
            check(model(x), q(x), 30)
    (chosen,) = q._compiled.run._chosen.values()  # type: ignore[union-attr]
    plan = next(iter(chosen.run._plans.values()))
    assert all(segment.torch_step is None for segment in plan.segments)


@torch.no_grad()
def test_a_sequence_of_thousands_of_steps() -> None:
    torch.manual_seed(0)
    layer, x = nn.GRU(4, 8).eval(), torch.randn(3000, 1, 4)
    q = fxquant.compile(layer, scheme="dynamic")
    check(layer(x), q(x), 33.0)


@torch.no_grad()
def test_states_of_another_size_are_refused_as_in_torch() -> None:
    q = fxquant.compile(nn.LSTM(4, 8).eval(), scheme="dynamic")
    with pytest.raises(fxquant.CallError, match=r"Expected hidden\[0\] size \(1, 2, 8\), got \[1, 3, 8\]"):
        q(torch.randn(5, 2, 4), (torch.zeros(1, 3, 8), torch.zeros(1, 3, 8)))
    with pytest.raises(fxquant.CallError, match="must be input_size, 4; got 5"):
        q(torch.randn(5, 2, 5))


def test_weights_beyond_fp16_stay_integers() -> None:
    """Few weights of the input get fp16, but not those that it would round to zero."""
    torch.manual_seed(0)
    layer = nn.LSTM(1, 64, 2).eval()
    assert "fp16 weights of the input" in fxquant.compile(layer, scheme="dynamic").report.rows[0].kernel
    with torch.no_grad():
        layer.get_parameter("weight_ih_l0").mul_(1e-8)
    x = 1e8 * torch.randn(5, 2, 1)
    q = fxquant.compile(layer, scheme="dynamic")
    assert "fp16" not in q.report.rows[0].kernel
    with torch.no_grad():
        check(layer(x), q(x), 30.0)
