"""The user's model is as before, whether the compilation succeeds or is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import FxquantError, QuantConfig

from .toys import Controlled, Lambda, compiled, data, images, small, unchanged


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("backend", ["reference", "x86"])
def test_after_a_compilation(training: bool, backend: Any) -> None:
    model = small().train(training)
    model.get_submodule("head").register_forward_hook(lambda m, a, out: None)
    model.get_submodule("stem").requires_grad_(False)
    with unchanged(model):
        q = fxquant.compile(model, calibration=data(), backend=backend)
        q(images())


def test_in_place_model_and_calibration_data() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True)).eval()
    batches = data()
    copies = [b.clone() for b in batches]
    with unchanged(model):
        compiled(model, batches)
    assert all(torch.equal(a, b) for a, b in zip(batches, copies, strict=True))


def test_after_prepare_and_calls() -> None:
    model = small().train()
    with unchanged(model):
        prepared = fxquant.prepare(model, backend="reference")
        prepared(images())
        fxquant.convert(prepared)


def _nan_weight() -> nn.Module:
    model = small()
    with torch.no_grad():
        model.get_parameter("body.0.weight")[0, 0, 0, 0] = torch.nan
    return model


def nothing(m: nn.Module, x: Tensor) -> Tensor:
    return torch.sin(x)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        pytest.param(Controlled(), {}, id="untraceable"),
        pytest.param(_nan_weight(), {}, id="nan weight"),
        pytest.param(small(), {"calibration": []}, id="no data"),
        pytest.param(small(), {"calibration": [images(), images(size=12)]}, id="wrong shape"),
        pytest.param(small(), {"calibration": [images() * torch.nan]}, id="nan input"),
        pytest.param(small(), {"config": QuantConfig(overrides={"nope": None})}, id="override"),
        pytest.param(small(), {"config": QuantConfig(overrides={"*": None})}, id="all in fp32"),
        pytest.param(small(), {"leaf_modules": ["nope"]}, id="leaf"),
        pytest.param(small(), {"scheme": "nope"}, id="scheme"),
        pytest.param(Lambda(nothing, conv=nn.Conv2d(3, 3, 1)), {}, id="nothing to quantize"),
    ],
)
def test_after_a_refusal(model: nn.Module, options: dict[str, Any]) -> None:
    model.train()
    for m in model.children():
        m.register_forward_pre_hook(lambda m, a: None)
    with unchanged(model), pytest.raises(FxquantError):
        fxquant.compile(model, **{"calibration": data(), "backend": "reference", **options})
