"""ReLU6 becomes ReLU on request only, and the report says so."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import QuantConfig
from fxquant.compiler.numerics.metrics import sqnr
from fxquant.passes.rewrites.relu6_as_relu import Relu6AsRelu
from tests.compiler.toys import compiled, images, normalized
from tests.passes.random_graphs import uneven


def error(given: Tensor, wanted: Tensor) -> float:
    return float(((given - wanted).abs().max() / wanted.abs().max()).detach())


def test_a_second_run_finds_none() -> None:
    gm = normalized(nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU6(), nn.Conv2d(6, 4, 1), nn.ReLU6()).eval())
    assert [Relu6AsRelu()(gm).rewrites for _ in range(2)] == [2, 0]


@pytest.mark.filterwarnings("ignore::fxquant.AccuracyWarning")
@pytest.mark.parametrize("as_relu", [False, True])
def test_replaced_only_on_request(as_relu: bool) -> None:
    first, second = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)
    model = uneven(nn.Sequential(first, nn.ReLU6(), second))
    plain, x = nn.Sequential(first, nn.ReLU(), second), images() * 5
    config = QuantConfig(relu6_as_relu=as_relu, weight="per_tensor_symmetric")
    prepared = fxquant.prepare(model, backend="reference", config=config)(x)
    assert error(plain(x), model(x)) > 0.01
    assert error(prepared, plain(x) if as_relu else model(x)) < 1e-4
    found = compiled(model, [x], config=config).report.rows[0]
    assert found.op == ("conv2d + relu" if as_relu else "conv2d + relu6")
    assert ("was relu6 (relu6_as_relu=True)" in found.reason) == as_relu
    # Only after a relu can the first layer be equalized.
    assert ("equalized: weight range" in found.reason) == as_relu
    assert ("relu6 '_1' is not scale-equivariant" in found.reason) != as_relu
    assert torch.equal(model(x), nn.Sequential(first, nn.ReLU6(), second)(x))


@pytest.mark.parametrize("size, warns", [(100.0, True), (1.0, False)])
def test_a_model_that_needs_its_clamp(size: float, warns: bool) -> None:
    """The user hears of it, by the SQNR of the float models."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU6(), nn.Conv2d(6, 4, 1)).eval()
    plain, x = nn.Sequential(model[0], nn.ReLU(), model[2]), images() * size
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        fxquant.compile(model, calibration=[x], config=QuantConfig(relu6_as_relu=True), backend="reference")
    told = [str(w.message) for w in found if issubclass(w.category, fxquant.AccuracyWarning)]
    with torch.no_grad():
        left = sqnr([model(x)], [plain(x)])
    assert (left < 20) == warns == bool(told)
    assert not warns or f"within {left:.1f} dB" in told[0]
