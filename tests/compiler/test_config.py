"""The configuration: its checks, overrides, and what the report tells of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxquant import ConfigError, QuantConfig
from fxquant.compiler.core.config import OBSERVERS
from fxquant.compiler.numerics.observers import OBSERVER_CLASSES
from fxquant.compiler.numerics.quantize import dequantize_channels

from .toys import Lambda, compiled, images, row, rows, small


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": "per_chanel_symmetric"}, "Did you mean 'per_channel_symmetric'"),
        ({"activation": "per_tensor_afine"}, "Did you mean 'per_tensor_affine'"),
        ({"observer": "min_max"}, "Did you mean 'minmax'"),
        ({"observer": "qqqq"}, "Valid: 'measured', 'histogram', 'minmax'"),
        ({"weight_bits": 9}, "from 2 to 8"),
        ({"weight_bits": 1}, "from 2 to 8"),
        ({"weight_bits": "8"}, "from 2 to 8"),
        ({"overrides": [("head", None)]}, "must be a dict"),
        ({"overrides": {3: None}}, "expected a module path"),
        ({"overrides": {int: None}}, "expected a module path"),
        ({"overrides": {"head": "int8"}}, "expected a QuantConfig"),
        ({"overrides": {"head": QuantConfig(overrides={"x": None})}}, "overrides of its own"),
    ],
)
def test_invalid_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QuantConfig(**options)


def precisions(overrides: dict[Any, Any]) -> dict[str, str]:
    q = compiled(small(), config=QuantConfig(overrides=overrides))
    return {r.node: r.precision for r in q.report.rows if r.op.split(" + ")[0] in ("conv2d", "linear")}


def test_no_override() -> None:
    assert precisions({}) == {"stem": "int8", "body.0": "int8", "head": "int8"}


@pytest.mark.parametrize(
    ("overrides", "fp32"),
    [
        ({"head": None}, {"head"}),
        ({"he*": None}, {"head"}),
        ({"body": None}, {"body.0"}),
        ({"body.*": None}, {"body.0"}),
        ({"*.0": None}, {"body.0"}),
        ({nn.Linear: None}, {"head"}),
        ({nn.Conv2d: None}, {"stem", "body.0"}),
        ({"conv2d": None}, {"stem", "body.0"}),
        ({"linear": None, "stem": None}, {"head", "stem"}),
        # A path beats a class or an op, whatever their order.
        ({"stem": QuantConfig(), nn.Conv2d: None}, {"body.0"}),
        ({nn.Conv2d: None, "stem": QuantConfig()}, {"body.0"}),
        ({"stem": QuantConfig(), "conv2d": None}, {"body.0"}),
        # Among equals the later wins.
        ({"*": None, "head": QuantConfig()}, {"stem", "body.0"}),
        ({nn.Module: None, nn.Linear: QuantConfig()}, {"stem", "body.0"}),
    ],
)
def test_overrides(overrides: dict[Any, Any], fp32: set[str]) -> None:
    assert {n for n, p in precisions(overrides).items() if p == "fp32"} == fp32


@pytest.mark.parametrize("key", ["head", "he*", nn.Linear, "linear"])
def test_report_names_the_override(key: Any) -> None:
    q = compiled(small(), config=QuantConfig(overrides={key: None}))
    shown = key if isinstance(key, str) else key.__name__
    assert "override" in row(q, "linear").reason
    assert shown in row(q, "linear").reason


@pytest.mark.parametrize(("key", "hint"), [("haed", "'head'"), ("linaer", "'linear'"), (nn.Conv3d, "Conv3d")])
def test_override_that_matches_nothing(key: Any, hint: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)matches nothing.*{hint}|{hint}.*matches nothing"):
        compiled(small(), config=QuantConfig(overrides={key: None}))


@pytest.mark.parametrize("key", ["act", "sigmoid", "pool", nn.Sigmoid, nn.MaxPool2d])
def test_override_of_an_op_without_parameters(key: Any) -> None:
    model = Lambda(
        lambda m, x: m.last(m.pool(m.act(m.first(x)))),
        first=nn.Conv2d(3, 4, 1), act=nn.Sigmoid(), pool=nn.MaxPool2d(2), last=nn.Conv2d(4, 4, 1),
    ).eval()  # fmt: skip
    q = compiled(model, config=QuantConfig(overrides={key: None}))
    op = "max_pool2d" if key in ("pool", nn.MaxPool2d) else "sigmoid"
    assert row(q, op).precision == "fp32"
    assert "override" in row(q, op).reason


def test_override_of_an_op_by_its_name_leaves_others() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.first(x)
        return m.last(m.mid(y) + y)

    layers = {n: nn.Conv2d(3, 3, 1) for n in ("first", "mid", "last")}
    q = compiled(Lambda(forward, **layers), config=QuantConfig(overrides={"add": None}))
    assert row(q, "add").precision == "fp32"
    assert {r.precision for r in rows(q, "conv2d")} == {"int8"}


def test_override_changes_the_weights_of_its_part_only() -> None:
    config = QuantConfig(overrides={"body.*": QuantConfig(weight="per_tensor_symmetric", weight_bits=4)})
    q = compiled(small(), config=config)
    scales: list[int] = []
    largest: list[int] = []
    buffers = dict(q.graph.named_buffers())
    for n in q.graph.graph.nodes:
        if n.target is dequantize_channels:
            scales.append(buffers[n.args[1].target].numel())
            largest.append(int(buffers[n.args[0].target].abs().max()))
    assert scales == [8, 1, 5]
    assert largest == [127, 7, 127]


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("activation", ["per_tensor_affine", "per_tensor_symmetric"])
def test_every_observer_gives_a_usable_model(observer: Any, activation: Any) -> None:
    model = small()
    q = compiled(model, config=QuantConfig(observer=observer, activation=activation))
    x = images()
    signal, noise = model(x), model(x) - q(x)
    assert noise.square().mean() < 0.05 * signal.square().mean()


@pytest.mark.parametrize(
    "weight", ["per_channel_symmetric", "per_tensor_symmetric", "per_channel_affine", "per_tensor_affine"]
)
def test_every_weight_scheme_gives_a_usable_model(weight: Any) -> None:
    model = small()
    q = compiled(model, config=QuantConfig(weight=weight))
    x = images()
    assert torch.nn.functional.cosine_similarity(model(x).flatten(), q(x).flatten(), 0) > 0.98


def test_a_config_of_another_type() -> None:
    with pytest.raises(ConfigError, match="must be a QuantConfig, got dict"):
        compiled(small(), config={"observer": "minmax"})


def test_every_observer_that_can_be_chosen_exists() -> None:
    assert set(OBSERVERS) == set(OBSERVER_CLASSES)


@pytest.mark.parametrize("name", ["verbose", "debug", "snapshots"])
def test_switches_are_bools(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is 'yes'; it must be True"):
        compiled(small(), **{name: "yes"})
