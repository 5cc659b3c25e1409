"""Bias correction: the mean error goes, and is not taken for one where it may be chance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import QuantConfig
from fxquant.passes.quantization import correct_bias
from tests.compiler.toys import Lambda, compiled

pytestmark = pytest.mark.usefixtures("one_thread")


def coarse(choice: Any, **options: Any) -> QuantConfig:
    return QuantConfig(
        weight_bits=3, weight="per_tensor_symmetric", equalize=False, absorb_bias=False, correct_bias=choice, **options
    )


def offset(*shape: int) -> Tensor:
    """Inputs of a large mean: the error of a rounded weight shows in the mean of the output."""
    return torch.randn(shape) + 4


def biases(q: fxquant.QuantizedModule) -> dict[str, Tensor]:
    return {n.replace("_int8_", "."): b for n, b in q.graph.named_buffers() if n.endswith("_int8_bias")}


def mean_error(q: fxquant.QuantizedModule, model: nn.Module, x: Tensor, axis: int) -> Tensor:
    with torch.no_grad():
        return (q(x) - model(x)).movedim(axis, 0).flatten(1).mean(1).abs()


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
    "conv": (nn.Conv2d(6, 8, 3), (16, 6, 8, 8), 1),
    "grouped": (nn.Conv2d(6, 8, 3, groups=2), (16, 6, 8, 8), 1),
    "transposed": (nn.ConvTranspose1d(6, 8, 3, padding=2), (16, 6, 12), 1),
    "linear": (nn.Linear(12, 8), (128, 12), -1),
    "sequence": (nn.Linear(12, 8), (16, 10, 12), -1),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("choice", [True, "auto"])
def test_the_mean_error_goes(name: str, choice: Any) -> None:
    layer, shape, axis = LAYERS[name]
    model = nn.Sequential(layer).eval()
    batches, x = [offset(*shape) for _ in range(4)], offset(256, *shape[1:])
    plain, corrected = (compiled(model, batches, config=coarse(c)) for c in (False, choice))
    before, after = (mean_error(q, model, x, axis) for q in (plain, corrected))
    assert float(after.max()) < 0.2 * float(before.max())
    assert float(after.mean()) < 0.2 * float(before.mean())
    assert "bias corrected by up to" in corrected.report.rows[0].reason


def test_each_layer_is_given_the_corrected_ones_before_it() -> None:
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 6)).eval()
    batches, x = [offset(128, 12) for _ in range(4)], offset(2048, 12)
    plain, corrected = (compiled(model, batches, config=coarse(c)) for c in (False, True))
    before, after = (mean_error(q, model, x, -1) for q in (plain, corrected))
    assert float(after.max()) < 0.2 * float(before.max())


def test_turned_off_the_biases_stay() -> None:
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    batches = [offset(128, 12)]
    kept, changed = (biases(compiled(model, batches, config=coarse(c))) for c in (False, True))
    assert set(kept) == {"0.bias", "2.bias"}
    assert all(torch.equal(b, model.get_parameter(n)) for n, b in kept.items())
    assert not any(torch.equal(b, model.get_parameter(n)) for n, b in changed.items())


def test_an_override_turns_it_off_for_one_layer() -> None:
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    given = biases(compiled(model, [offset(128, 12)], config=coarse(True, overrides={"0": coarse(False)})))
    assert torch.equal(given["0.bias"], model.get_parameter("0.bias"))
    assert not torch.equal(given["2.bias"], model.get_parameter("2.bias"))


def test_a_layer_without_bias_gets_one() -> None:
    model = nn.Sequential(nn.Linear(12, 8, bias=False)).eval()
    plain, corrected = (compiled(model, [offset(128, 12)] * 2, config=coarse(c)) for c in (False, True))
    assert not biases(plain)["0.bias"].any() and biases(corrected)["0.bias"].any()
    x = offset(512, 12)
    assert float(mean_error(corrected, model, x, -1).max()) < 0.2 * float(mean_error(plain, model, x, -1).max())


@pytest.mark.parametrize("choice", [True, "auto"])
def test_one_item_tells_nothing(choice: Any) -> None:
    model = nn.Sequential(nn.Conv2d(6, 8, 3)).eval()
    q = compiled(model, [offset(1, 6, 8, 8)], config=coarse(choice))
    assert "bias not corrected: the sample has one item" in q.report.rows[0].reason
    assert torch.equal(biases(q)["0.bias"], model.get_parameter("0.bias"))
    two = compiled(model, [offset(1, 6, 8, 8)] * 2, config=coarse(choice))
    assert "the sample has one item" not in two.report.rows[0].reason


def test_a_layer_called_twice_is_refused() -> None:
    model = Lambda(lambda m, x: m.b(m.a(m.a(x).relu())), a=nn.Linear(6, 6), b=nn.Linear(6, 4)).eval()
    q = compiled(model, [offset(128, 6)], config=coarse(True))
    reasons = [r.reason for r in q.report.rows]
    assert ["bias not corrected: the layer is called 2 times" in r for r in reasons] == [True, True, False]
    assert torch.equal(biases(q)["a.bias"], model.get_parameter("a.bias"))
    assert not torch.equal(biases(q)["b.bias"], model.get_parameter("b.bias"))


@pytest.mark.parametrize("seed", range(4))
def test_chance_is_not_taken_for_error(seed: int) -> None:
    """Weights on the grid: what is left is the noise of rounded inputs, of a mean error that is all chance."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 32)).eval()
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.randint(-127, 128, (32, 64)) / 127)
    q = compiled(model, [torch.randn(8, 64)], config=QuantConfig(correct_bias=True))
    moved = biases(q)["0.bias"] - model.get_parameter("0.bias").detach()
    # The plain mean over the sample is about 0.01.
    assert float(moved.square().mean().sqrt()) < 0.003


def test_without_a_sure_gain_auto_takes_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correct_bias, "surely_nearer", lambda exact, before, after: False)
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    q = compiled(model, [offset(128, 12)], config=coarse("auto"))
    assert all(torch.equal(b, model.get_parameter(n)) for n, b in biases(q).items())
    assert all("bias not corrected: no significant gain" in r.reason for r in q.report.rows if "linear" in r.op)


def test_what_was_asked_for_stays_corrected_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correct_bias, "surely_nearer", lambda exact, before, after: False)
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    q = compiled(model, [offset(128, 12)], config=coarse("auto", overrides={"0": coarse(True)}))
    assert not torch.equal(biases(q)["0.bias"], model.get_parameter("0.bias"))
    assert "bias corrected by up to" in q.report.rows[0].reason


@pytest.mark.parametrize(
    "choice",
    [
        False,
        True,
        "auto",
    ],
)
def test_inputs_without_a_batch_axis_compile(choice: Any) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    q = compiled(model, [torch.randn(6) for _ in range(4)], config=QuantConfig(correct_bias=choice))
    assert q(torch.randn(6)).shape == (3,)
