"""Smoothing: exact in fp32, a clear gain after an outlier channel, refused with a reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import QuantConfig
from tests.compiler.toys import Lambda, compiled, sqnr, unchanged

pytestmark = pytest.mark.usefixtures("one_thread")


def outlier() -> nn.Sequential:
    """One channel after the norm is 100 times as wide as the others, and counts as much as they do."""
    model = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
    with torch.no_grad():
        model.get_parameter("0.weight")[3] = 100
        model.get_parameter("1.weight")[:, 3] /= 100
    return model


def uneven(layer: Any) -> nn.Module:
    """``layer`` with output channels over two decades."""
    with torch.no_grad():
        scale = torch.logspace(-1, 1, len(layer.weight))
        layer.weight *= scale.reshape(-1, *[1] * (layer.weight.dim() - 1))
        layer.bias *= scale
    result: nn.Module = layer
    return result


def residual(m: Any, x: Tensor) -> Any:
    y = m.stem(x).relu()
    return m.head(y + m.body(y).relu())


def queries(m: Any, x: Tensor) -> Any:
    """A norm with three readers, as before an attention."""
    y = m.norm(x)
    q, k, v = m.q(y), m.k(y), m.v(y)
    return m.o(torch.softmax(q @ k.transpose(1, 2), -1) @ v)


def attention() -> nn.Module:
    return Lambda(queries, norm=uneven(nn.LayerNorm(16)), **{n: nn.Linear(16, 16) for n in "qkvo"})


def convolutions() -> nn.Module:
    return nn.Sequential(uneven(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Conv2d(8, 4, 3, groups=2))


def skipping() -> nn.Module:
    stem, body = uneven(nn.Conv2d(3, 8, 1)), uneven(nn.Conv2d(8, 8, 3, padding=1))
    return Lambda(residual, stem=stem, body=body, head=nn.Conv2d(8, 4, 1))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "outlier": (outlier, (64, 32)),
    "attention": (attention, (8, 12, 16)),
    "convolutions": (convolutions, (4, 3, 9, 9)),
    "residual": (skipping, (4, 3, 9, 9)),
}


def smoothed(prepared: fxquant.Prepared) -> list[str]:
    return [n.name for n, text in prepared.notes.items() if "smoothed: channel ranges equalized" in text]


@pytest.mark.parametrize("name", MODELS)
def test_the_output_in_fp32_stays(name: str) -> None:
    build, shape = MODELS[name]
    model, x = build().eval(), torch.randn(shape)
    prepared = fxquant.prepare(model, backend="reference", config=QuantConfig(smooth=True))
    with torch.no_grad(), unchanged(model):
        for batch in (x, 3 * torch.randn(shape)):
            wanted = model(batch)
            assert float((prepared(batch) - wanted).abs().max() / wanted.abs().max()) < 1e-4
    assert smoothed(prepared), prepared.notes
    given, kept = prepared.graph_module.state_dict(), model.state_dict()
    assert any(not torch.equal(given[k], kept[k]) for k in kept if k in given)


def test_what_a_giver_loses_its_reader_gets() -> None:
    model = outlier()
    prepared = fxquant.prepare(model, backend="reference", config=QuantConfig(smooth=True))
    prepared(torch.randn(64, 32))
    norm: Any = prepared.graph_module.get_submodule("0")
    reader: Any = prepared.graph_module.get_submodule("1")
    scale = (model[0].weight / norm.weight).detach()
    assert float(scale[3] / scale.median()) > 5
    torch.testing.assert_close(norm.bias, model[0].bias / scale)
    torch.testing.assert_close(reader.weight, model[1].weight * scale)


@pytest.mark.parametrize("choice", ["auto", True])
def test_an_outlier_channel_costs_little(choice: Any) -> None:
    model, x = outlier(), torch.randn(128, 32)
    batches = [torch.randn(64, 32) for _ in range(4)]
    with torch.no_grad():
        before, after = (
            sqnr(model(x), compiled(model, batches, config=QuantConfig(smooth=c, mixed_precision=False))(x))
            for c in (False, choice)
        )
    # A step 100 times as wide is 40 dB; rounding elsewhere leaves more than half of it.
    assert after > before + 20, (before, after)


def test_a_second_preparation_finds_nothing_left() -> None:
    first = fxquant.prepare(outlier(), backend="reference", config=QuantConfig(smooth=True))
    x = torch.randn(64, 32)
    first(x)
    model = outlier()
    model.load_state_dict({k: first.graph_module.state_dict()[k] for k in model.state_dict()})
    second = fxquant.prepare(model, backend="reference", config=QuantConfig(smooth=True))
    second(x)
    assert smoothed(first) == ["_0"] and smoothed(second) == []


def test_one_scale_per_weight_is_refused() -> None:
    config = QuantConfig(smooth=True, equalize=False, weight="per_tensor_symmetric")
    model, x = outlier(), torch.randn(64, 32)
    q = compiled(model, [x], config=config)
    assert [r.op for r in q.report.rows] == ["layer_norm", "linear + relu", "linear"]
    assert "not smoothed: the weight of '_1' has one scale for all channels" in q.report.rows[1].reason
    prepared = fxquant.prepare(model, backend="reference", config=config)
    prepared(x)
    assert all(torch.equal(p, model.get_parameter(n)) for n, p in prepared.graph_module.named_parameters())


@pytest.mark.parametrize("name", MODELS)
def test_turned_off_it_changes_nothing(name: str) -> None:
    build, shape = MODELS[name]
    model = build().eval()
    prepared = fxquant.prepare(model, backend="reference", config=QuantConfig(smooth=False))
    prepared(torch.randn(shape))
    assert all(torch.equal(p, model.get_parameter(n)) for n, p in prepared.graph_module.named_parameters())
    assert not any("smoothed" in text for text in prepared.notes.values())


def test_an_override_turns_it_off_for_one_layer() -> None:
    model, x = outlier(), torch.randn(64, 32)
    config = QuantConfig(smooth=True, overrides={"1": QuantConfig(smooth=False)})
    q = compiled(model, [x], config=config)
    assert "not smoothed: turned off by smooth=False" in q.report.rows[1].reason


def test_even_channels_are_left_as_they_are() -> None:
    model = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64)).eval()
    q = compiled(model, [torch.randn(64, 32)], config=QuantConfig(smooth=True))
    assert "not smoothed: no channel is much wider" in q.report.rows[0].reason
