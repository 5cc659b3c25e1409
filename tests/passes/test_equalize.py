"""Cross-layer equalization: exact on any graph, done once, and every layer accounted for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from fxquant import QuantConfig
from fxquant.passes.analysis.channels import Port, scale_classes
from fxquant.passes.analysis.choice import nothing_against
from fxquant.passes.base import PassResult
from fxquant.passes.layers.layer_weight import by_channels
from fxquant.passes.rewrites.equalize import TOLERANCE, Equalize
from tests.compiler.toys import Lambda, compiled, images, normalized, unchanged
from tests.passes.random_graphs import PROGRAMS, RandomGraph, uneven

pytestmark = pytest.mark.usefixtures("one_thread")


def equalized(model: nn.Module, x: Tensor) -> tuple[fx.GraphModule, PassResult]:
    gm = normalized(model)
    return gm, Equalize(((x,), {}))(gm)


def unsettled(gm: fx.GraphModule, x: Tensor) -> dict[fx.Node, float]:
    """How far (log) the channels of each layer still are from equal ranges, 0 where none can be scaled."""
    classes = scale_classes(gm, ((x,), {}), nothing_against)
    given, read = torch.zeros(classes.count), torch.zeros(classes.count)

    def collect(into: Tensor, port: Port, others: int) -> None:
        into.scatter_reduce_(0, port.slots, by_channels(port.layer, port.row).abs().amax((others, 3)).flatten(), "amax")

    for port in classes.producers:
        collect(given, port, 2)
    for port in classes.consumers:
        collect(read, port, 1)
    usable = classes.free & (given > 0) & (read > 0)
    steps = torch.where(usable, 0.5 * (given / read).log().abs(), 0.0)
    return {p.node: float(steps[p.slots].max()) for p in classes.producers}


def relative_error(given: Any, wanted: Any) -> float:
    pairs = zip(given, wanted, strict=True) if isinstance(wanted, tuple) else [(given, wanted)]
    return max(float(((g - w).abs().max() / w.abs().max()).detach()) for g, w in pairs)


def by_name(texts: Any) -> dict[str, str]:
    return {n.name: text for n, text in texts.items()}


@settings(max_examples=40)
@given(program=PROGRAMS, seed=st.integers(0, 999))
def test_any_graph_keeps_its_output_and_accounts_for_every_layer(
    program: list[tuple[str, int, int]], seed: int
) -> None:
    torch.manual_seed(seed)
    model, x = uneven(RandomGraph(program)), images(2, size=6)
    gm = normalized(model)
    layers = [n for n in gm.graph.nodes if n.op == "call_module" and hasattr(gm.get_submodule(str(n.target)), "weight")]
    had_to_go = unsettled(gm, x)
    result = Equalize(((x,), {}))(gm)
    assert relative_error(gm(x), model(x)) < 1e-4
    assert all(result.refusals.values()) and all(result.remarks.values())
    for layer in layers:
        assert layer in result.remarks or layer in result.refusals or had_to_go[layer] < TOLERANCE, layer
    before = {n: p.clone() for n, p in gm.named_parameters()}
    assert Equalize(((x,), {}))(gm).rewrites == 0
    assert all(torch.equal(p, before[n]) for n, p in gm.named_parameters())


def ranges(layer: Any, side: str) -> Tensor:
    """Largest weight per output or input channel, of a plain layer."""
    axis = 0 if side == "out" else 1
    return layer.weight.detach().abs().movedim(axis, 0).flatten(1).amax(1)


def test_a_pair_gets_the_scale_of_the_paper() -> None:
    model: Any = uneven(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)))
    given, read = ranges(model[0], "out"), ranges(model[2], "in")
    gm, result = equalized(model, images())
    first, second = gm.get_submodule("0"), gm.get_submodule("2")
    scale = (given / read).sqrt()
    along = scale.reshape(-1, 1, 1, 1)
    torch.testing.assert_close(first.weight, model[0].weight / along, rtol=1e-3, atol=0)
    torch.testing.assert_close(first.bias, model[0].bias / scale, rtol=1e-3, atol=0)
    torch.testing.assert_close(second.weight, model[2].weight * along.movedim(0, 1), rtol=1e-3, atol=0)
    assert torch.equal(second.bias, model[2].bias)  # type: ignore[arg-type]
    assert result.rewrites == 1 and "weight range per channel" in by_name(result.remarks)["_0"]


def test_a_depthwise_layer_between_two_gets_the_same_range() -> None:
    layers = [nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.Conv2d(6, 4, 1)]
    model: Any = uneven(nn.Sequential(*layers))
    before = (ranges(model[0], "out") * ranges(model[2], "out") * ranges(model[4], "in")) ** (1 / 3)
    gm, result = equalized(model, images())
    for path, side in (("0", "out"), ("2", "out"), ("4", "in")):
        torch.testing.assert_close(ranges(gm.get_submodule(path), side), before, rtol=0.05, atol=0)
    assert result.rewrites == 2


def test_a_channel_is_followed_through_flatten() -> None:
    model: Any = uneven(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 5)))
    gm, _ = equalized(model, images())
    head: Any = gm.get_submodule("3")
    columns = head.weight.detach().abs().reshape(5, 6, 36).amax((0, 2))
    torch.testing.assert_close(columns, ranges(gm.get_submodule("0"), "out"), rtol=1e-3, atol=0)


def test_two_layers_joined_are_each_equalized_with_their_part_of_the_reader() -> None:
    layers = {"a": nn.Conv2d(3, 4, 1), "b": nn.Conv2d(3, 2, 1), "c": nn.Conv2d(6, 5, 1)}
    model = uneven(Lambda(lambda m, x: m.c(torch.cat([m.a(x), m.b(x).relu()], 1)), **layers))
    gm, result = equalized(model, images())
    out = torch.cat([ranges(gm.get_submodule(p), "out") for p in "ab"])
    torch.testing.assert_close(out, ranges(gm.get_submodule("c"), "in"), rtol=1e-3, atol=0)
    assert set(by_name(result.remarks)) == {"a", "b"}


def residual(m: Any, x: Tensor) -> Tensor:
    trunk = m.a(x)
    y: Tensor = m.c(trunk + m.b(trunk.relu()))
    return y


def test_layers_that_are_added_share_one_scale() -> None:
    layers = {"a": nn.Conv2d(3, 6, 1), "b": nn.Conv2d(6, 6, 1), "c": nn.Conv2d(6, 5, 1)}
    model: Any = uneven(Lambda(residual, **layers))
    gm, _ = equalized(model, images())
    a, b, c = (gm.get_submodule(p).weight / getattr(model, p).weight for p in "abc")
    scale = c[0].flatten().detach()
    assert float(scale.log().abs().max()) > 0.1
    torch.testing.assert_close(a[:, 0].flatten(), 1 / scale)
    torch.testing.assert_close(b.flatten(1), scale[None] / scale[:, None])


def tied() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1))
    model[2].weight = model[0].weight
    return model


def twice() -> nn.Module:
    return Lambda(lambda m, x: m.b(m.a(m.a(x).relu())), a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 4, 1))


def clamped() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU6(), nn.Conv2d(6, 4, 1))


@pytest.mark.parametrize(
    ("model", "name", "reason"),
    [
        (twice(), "a", "is used 2 times"),
        (twice(), "a_1", "is used 2 times"),
        (clamped(), "_0", "relu6"),
        (clamped(), "_2", "output of the model"),
    ],
)
def test_refusals_have_reasons(model: nn.Module, name: str, reason: str) -> None:
    gm, result = equalized(uneven(model), images())
    refusals = by_name(result.refusals)
    assert result.rewrites == 0 and refusals[name].startswith("not equalized: ") and reason in refusals[name]
    assert all(torch.equal(p, q) for p, q in zip(gm.parameters(), model.parameters(), strict=True))


def test_tied_layers_get_weights_of_their_own() -> None:
    model, x = uneven(tied()), images()
    gm, result = equalized(model, x)
    assert result.rewrites == 2 and relative_error(gm(x), model(x)) < 1e-4
    assert model.get_parameter("0.weight") is model.get_parameter("2.weight")


def test_compiling_leaves_the_users_model_alone() -> None:
    model, x = uneven(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))), images()
    with unchanged(model):
        q = compiled(model, [x], config=QuantConfig(equalize=True, weight="per_tensor_symmetric"))
    assert any("equalized: weight range" in r.reason for r in q.report.rows)
