"""Layers that quantize their input at run time, row by row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant.backends.base.dynamic_layer import ReferenceLayer
from fxquant.backends.llvm.codegen.isas import available
from fxquant.compiler.numerics.metrics import sqnr
from fxquant.compiler.runtime.call_forms import GraphForm

from ...models.sequences import BertEncoder, ViT
from .support import made


@pytest.mark.parametrize("shape", [(1, 70), (5, 70), (2, 3, 70), (70,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.int8, torch.float16], ids=str)
def test_linear(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """As the reference in plain torch, up to the order of fp32 sums, and the same bits on all instruction sets."""
    torch.manual_seed(0)
    layer, x = nn.Linear(70, 33).eval(), torch.randn(shape)
    layers = [made(layer, isa, dtype) for isa in available()]
    outputs = [each.compiled(x) for each in layers]
    assert isinstance(layers[0].reference, ReferenceLayer)
    with torch.no_grad():
        assert torch.allclose(outputs[0], layers[0].reference(x), atol=2e-5)
    assert all(torch.equal(outputs[0], o) for o in outputs[1:])


def test_rows_do_not_depend_on_their_batch_mates() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 40).eval(), torch.randn(6, 64)
    q = fxquant.compile(layer, scheme="dynamic")
    beside = torch.cat((x, 1000 * torch.randn(3, 64)))
    assert torch.equal(q(beside)[:6], q(x))
    assert all(torch.equal(q(x[i : i + 1])[0], q(x)[i]) for i in range(6))


def test_rows_of_zeros_and_of_one_value() -> None:
    layer = nn.Linear(16, 8).eval()
    q = fxquant.compile(layer, scheme="dynamic")
    rows = torch.stack((torch.zeros(16), torch.full((16,), 3.0), torch.full((16,), -1e-3), torch.full((16,), 1e30)))
    with torch.no_grad():
        exact = layer(rows)
    assert torch.equal(q(rows)[0], exact[0])
    error = (q(rows) - exact).abs().amax(1) / exact.abs().amax(1)
    assert float(error.max()) < 0.02  # rounding of the weights


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_is_nan_and_no_other(value: float) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(40, 8).eval(), torch.randn(3, 40)
    q = fxquant.compile(layer, scheme="dynamic")
    good = q(x)
    x[1, 17] = value
    assert q(x)[1].isnan().all() and torch.equal(q(x)[::2], good[::2])


@pytest.mark.parametrize("model", [BertEncoder(dim=64, heads=2, hidden=128, depth=2, length=12), ViT(size=32, depth=2)],
                         ids=lambda m: type(m).__name__)  # fmt: skip
def test_models_run_in_one_plan(model: nn.Module) -> None:
    torch.manual_seed(0)
    x: Tensor = torch.randn(2, 3, 32, 32) if isinstance(model, ViT) else torch.randint(100, (2, 12))
    model.eval()
    q = fxquant.compile(model, scheme="dynamic")
    q(x)  # forward() itself
    (chosen,) = q._compiled.run._chosen.values()  # type: ignore[union-attr]
    assert isinstance(chosen, GraphForm)
    with torch.no_grad():
        assert sqnr([model(x)], [q(x)]) > 30
    assert torch.equal(q(x)[1:], q(x[1:]))


POINTWISE = {
    "conv1d": (nn.Conv1d(24, 20, 1), (3, 24, 7)),
    "conv2d": (nn.Conv2d(24, 20, 1), (3, 24, 5, 6)),
    "conv2d, stride": (nn.Conv2d(24, 20, 1, stride=(2, 3)), (3, 24, 5, 7)),
    "conv3d, no bias": (nn.Conv3d(24, 20, 1, bias=False), (3, 24, 2, 3, 4)),
}


@pytest.mark.parametrize("dtype", [torch.int8, torch.float16], ids=str)
@pytest.mark.parametrize("name", POINTWISE)
@torch.no_grad()
def test_pointwise_convolutions(name: str, dtype: torch.dtype) -> None:
    """As the reference in plain torch, the same bits everywhere, and each pixel by itself."""
    torch.manual_seed(0)
    layer, shape = POINTWISE[name]
    layer, x = layer.eval(), torch.randn(shape)
    layers = [made(layer, isa, dtype) for isa in available()]
    outputs = [each.compiled(x) for each in layers]
    assert torch.allclose(outputs[0], layers[0].reference(x), atol=2e-5)
    assert all(torch.equal(outputs[0], o) for o in outputs[1:])
    assert outputs[0].stride() == layer(x).stride()
    first = layers[0].compiled
    assert torch.equal(first(x[1:2]), outputs[0][1:2])
    assert torch.allclose(first(x[0]), outputs[0][0], atol=2e-5)  # without a batch axis
    x[0, 3].flatten()[-1] = 1e4
    assert torch.equal(first(x)[1:], outputs[0][1:])


@torch.no_grad()
def test_convolutions_and_activations_in_one_plan() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16), nn.SiLU(), nn.Conv2d(16, 16, 3, groups=16),
                          nn.Conv2d(16, 8, 1), nn.ReLU()).eval()  # fmt: skip
    x = torch.randn(4, 8, 7, 9)
    q = fxquant.compile(model, scheme="dynamic")
    assert sqnr([model(x)], [q(x)]) > 35
    beside = torch.cat((x[:1], 1e3 * x[1:]))
    assert torch.equal(q(beside)[:1], q(x)[:1])
    (window,) = [row for row in q.report.rows if row.precision == "fp32" and row.op == "conv2d"]
    assert "faster in fp32: 9 products" in window.reason


@torch.no_grad()
def test_dicts_of_tensors_share_a_plan(caplog: pytest.LogCaptureFixture) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, given: dict[str, Tensor]) -> Tensor:
            return self.layer(given["x"]) + given["y"]

    torch.manual_seed(0)
    model, calls = Named().eval(), [{"x": torch.randn(2, 8), "y": torch.randn(2, 8)} for _ in range(40)]
    q = fxquant.compile(model, calibration=[(c,) for c in calls[:3]], backend="llvm")
    for call in calls:
        assert sqnr([model(call)], [q(call)]) > 15
    assert "more than" not in caplog.text
