"""Recurrent layers in graphs: states that are passed on whole, and layers in fp32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant.compiler.runtime.call_forms import GraphForm

from .support import frozen, planned
from .test_recurrent import BATCH, INPUTS, LAYERS, SIZE, TIME, check, layer_of

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


class Translator(nn.Module):
    """The state of the encoder goes to the decoder as it is."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.encoder, self.decoder = (kind(INPUTS, SIZE, batch_first=True) for _ in range(2))
        self.head = nn.Linear(SIZE, 7)

    def forward(self, x: Tensor, y: Tensor) -> Any:
        _, state = self.encoder(x)
        output, last = self.decoder(y, state)
        return self.head(output), last


class Whole(nn.Module):
    """The result of the layer is returned as it is."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.layer = kind(INPUTS, SIZE)

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.layer(x + y)


class Unrolled(nn.Module):
    """A cell that gets its own state, and the last state picked."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        cells = {nn.LSTM: nn.LSTMCell, nn.GRU: nn.GRUCell, nn.RNN: nn.RNNCell}
        self.layer, self.cell = kind(INPUTS, SIZE, 2), cells[kind](INPUTS, SIZE)
        self.has_cells = kind is nn.LSTM

    def forward(self, x: Tensor, y: Tensor) -> Any:
        state = self.cell(x[0])
        for number in range(1, 3):
            state = self.cell(x[number], state)
        _, ends = self.layer(y)
        return state, (ends[0] if self.has_cells else ends)[-1]


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("make", [Translator, Whole, Unrolled])
@torch.no_grad()
def test_states_that_are_passed_on_whole(make: Any, kind: type[nn.Module], scheme: str) -> None:
    torch.manual_seed(0)
    model, given = make(kind).eval(), (torch.randn(4, 3, INPUTS), torch.randn(4, 3, INPUTS))
    options: dict[str, Any] = {}
    if scheme == "static":
        overrides = dict.fromkeys({type(m) for m in model.modules() if isinstance(m, nn.RNNBase | nn.RNNCellBase)})
        config = fxquant.QuantConfig(overrides=dict.fromkeys(overrides, "dynamic"))
        options = {"calibration": [given], "config": config}
    q = fxquant.compile(model, scheme=scheme, backend="llvm", **options)  # type: ignore[arg-type]
    for _ in range(2):
        check(model(*given), q(*given), 33.0)
    if scheme == "dynamic":
        (form,) = q._compiled.run._chosen.values()  # type: ignore[union-attr]
        assert isinstance(form, GraphForm)


class Between(nn.Module):
    """A recurrent layer between linear ones: fp32 in a static model."""

    def __init__(self, layer: nn.Module, channels: int) -> None:
        super().__init__()
        self.first, self.layer, self.head = nn.Linear(INPUTS, INPUTS), layer, nn.Linear(channels, 7)

    def forward(self, x: Tensor) -> Any:
        output, state = self.layer(self.first(x))
        return self.head(output), state


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_fp32_layers_of_static_models_are_native(name: str) -> None:
    """As torch's own layers, but for the order of sums: the linear layer before is int8 alike."""
    layer = layer_of(name)
    x = torch.randn(TIME, BATCH, INPUTS)
    model = Between(layer, layer(x)[0].shape[-1]).eval()
    q = fxquant.compile(model, calibration=[x], backend="llvm")
    first = fxquant.compile(model.first, calibration=[x], backend="llvm")
    check(layer(first(x))[1], q(x)[1], 80.0)
    program = planned(frozen(model, [(x,)]), (x,))
    assert all(segment.torch_step is None for segment in program.segments)


@torch.no_grad()
def test_results_counted_from_the_end_and_tied_weights() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.layer = nn.Linear(INPUTS, SIZE), nn.LSTM(SIZE, SIZE, 2)
            self.layer.weight_hh_l1 = self.layer.weight_hh_l0

        def forward(self, x: Tensor) -> Any:
            return self.layer(self.first(x))[-1][-2]

    torch.manual_seed(0)
    model, x = Last().eval(), torch.randn(TIME, BATCH, INPUTS)
    program = frozen(model, [(x,)])
    plan = planned(program, (x,))
    assert all(segment.torch_step is None for segment in plan.segments)
    check(model(x), fxquant.compile(model, calibration=[x], backend="llvm")(x), 33.0)
