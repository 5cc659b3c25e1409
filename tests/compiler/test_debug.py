"""fxquant.debug: what it shows is what the passes did."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import fxquant
from fxquant import CalibrationError, ConfigError, QuantConfig

from .toys import data, small

PER_TENSOR = QuantConfig(weight="per_tensor_symmetric", equalize=True)


def test_every_layer_is_seen_after_every_step() -> None:
    found = fxquant.debug.inspect(small(), data(), config=PER_TENSOR)
    assert list(found.steps)[:2] == ["capture and fold", "equalize"] and "freeze" in found.steps
    for layers in found.steps.values():
        assert list(layers) == ["stem", "body.0", "head"]
        assert all(int(view.histogram.counts.sum()) > 0 and view.low <= view.high for view in layers.values())
    assert all(path in str(found) for path in ("stem", "body.0", "head"))


def test_weight_ranges_are_those_of_the_layer() -> None:
    model = small()
    found = fxquant.debug.inspect(model, data(), config=QuantConfig(smooth=False))
    weight = model.get_parameter("head.weight").detach()
    for step in ("capture and fold", "place"):
        assert torch.equal(found.steps[step]["head"].weight_ranges, weight.abs().amax(1))
    # Rounded to integers: at most half a step of 127 away.
    rounded = found.steps["freeze"]["head"].weight_ranges
    assert ((rounded - weight.abs().amax(1)).abs() <= 0.13 * weight.abs().amax(1)).all()


def test_equalization_shows_in_the_ranges() -> None:
    first, second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
    model = nn.Sequential(first, nn.ReLU(), second).eval()
    factor = 10 ** torch.linspace(-2, 2, 8)
    with torch.no_grad():
        first.weight *= factor.reshape(-1, 1, 1, 1)
        second.weight /= factor.reshape(1, -1, 1, 1)
    found = fxquant.debug.inspect(model, data(), config=PER_TENSOR)
    before, after = (found.steps[s]["0"].weight_ranges for s in ("capture and fold", "equalize"))
    assert before.max() / before.min() > 1e3 and after.max() / after.min() < 20


def test_sqnr_falls_with_the_bits_and_the_model_is_left_alone() -> None:
    model, batches = small(), data()
    before = copy.deepcopy(model.state_dict())
    fine, coarse = (fxquant.debug.inspect(model, batches, config=QuantConfig(weight_bits=bits)).sqnr for bits in (8, 3))
    assert all(fine[path] > coarse[path] + 10 for path in ("stem", "body.0", "head"))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_layers_in_fp32_have_no_sqnr() -> None:
    found = fxquant.debug.inspect(small(), data(), config=QuantConfig(overrides={"head": None}))
    assert list(found.sqnr) == ["stem", "body.0"] and "fp32" in str(found)


def test_it_refuses_what_compile_refuses() -> None:
    with pytest.raises(CalibrationError, match="no batch"):
        fxquant.debug.inspect(small(), [])


def test_it_does_not_change_what_is_measured() -> None:
    """Looking must not be observed: moving averages would differ, had the observers seen data twice."""
    config = QuantConfig(observer="moving_average")
    model, batches = small(), data()
    found = fxquant.debug.inspect(model, batches, config=config)
    q = fxquant.compile(model, calibration=batches, config=config, backend="reference", snapshots=True)
    again = fxquant.debug.inspect(model, batches, config=config)
    assert found.sqnr == again.sqnr
    assert list(q.snapshots)[-3:] == ["learn_rounding", "correct_bias", "lower"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"config": "x"}, "config must be a QuantConfig"), ({"batches": 0}, "batches is 0"), ({"target": "x"}, "Target")],
)
def test_bad_arguments_are_named(options: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        fxquant.debug.inspect(small(), data(), **options)
