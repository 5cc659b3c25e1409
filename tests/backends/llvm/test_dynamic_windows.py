"""Convolutions with windows that quantize their input at run time, each batch index by itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxquant
from fxquant.backends.llvm.codegen.isas import available
from fxquant.compiler.numerics.metrics import sqnr
from fxquant.compiler.runtime.call_forms import GraphForm

from .support import made

CONVOLUTIONS = {
    "padding": (nn.Conv2d(16, 24, 3, padding=1), (3, 16, 9, 7)),
    "first layer": (nn.Conv2d(3, 32, 7, stride=2, padding=3), (2, 3, 40, 61)),
    "1d, same, dilation": (nn.Conv1d(24, 40, 5, padding="same", dilation=2), (3, 24, 50)),
    "groups, padding of one axis": (nn.Conv2d(32, 64, 3, groups=4, padding=(0, 2)), (2, 32, 5, 5)),
    "3d, no bias": (nn.Conv3d(4, 16, 3, padding=1, bias=False), (2, 4, 6, 5, 7)),
    "window of one pixel, padding": (nn.Conv2d(8, 200, 1, padding=1), (2, 8, 5, 5)),
    "more than a row of a kernel": (nn.Conv2d(8, 16, 3, padding=1), (2, 8, 200, 160)),
    "a prime number of elements": (nn.Conv1d(1, 128, 3), (2, 1, 16411)),
}


CASES = [(name, torch.int8, 8) for name in CONVOLUTIONS]
CASES += [(name, *kind) for name in list(CONVOLUTIONS)[2:4] for kind in ((torch.int8, 4), (torch.float16, 8))]


@pytest.mark.parametrize("name, dtype, bits", CASES, ids=str)
@torch.no_grad()
def test_convolutions(name: str, dtype: torch.dtype, bits: int) -> None:
    """As the reference in plain torch, the same bits on all instruction sets, and each batch index by itself."""
    torch.manual_seed(0)
    layer, shape = CONVOLUTIONS[name]
    layer, x = layer.eval(), torch.randn(shape)
    x[0] *= 5
    isas = available() if name == "padding" else (available()[0], available()[-1])
    layers = [made(layer, isa, dtype, weight_bits=bits) for isa in isas]
    outputs = [each.compiled(x) for each in layers]
    assert torch.allclose(outputs[0], layers[0].reference(x), atol=1e-4)
    assert sqnr([layer(x)], [outputs[0]]) > (60 if dtype == torch.float16 else 36 if bits == 8 else 18)
    assert all(torch.equal(outputs[0], o) for o in outputs[1:])
    compiled = layers[0].compiled
    assert torch.equal(compiled(x[1:2]), outputs[0][1:2])
    assert torch.allclose(compiled(x[0]), outputs[0][0], atol=1e-4)  # without a batch axis


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@torch.no_grad()
def test_an_image_that_is_not_finite_is_nan_and_no_other(value: float) -> None:
    torch.manual_seed(0)
    q = fxquant.compile(nn.Conv2d(8, 64, 3, padding=1).eval(), scheme="dynamic", backend="llvm")
    x = torch.randn(3, 8, 70, 60)
    good = q(x)
    x[1, 3, 69, 59] = value
    assert q(x)[1].isnan().all() and torch.equal(q(x)[::2], good[::2])
    assert torch.equal(q(torch.zeros_like(x))[0], q(torch.zeros_like(x))[1])


@pytest.mark.parametrize(
    "layer, reason",
    [
        (nn.Conv2d(32, 32, 3, groups=32), "faster in fp32: 9 products"),
        (nn.Conv2d(8, 64, 3, padding=1, padding_mode="circular"), "padding_mode='circular'"),
    ],
)
def test_refusals(layer: nn.Conv2d, reason: str) -> None:
    q = fxquant.compile(
        nn.Sequential(layer, nn.Conv2d(layer.out_channels, 64, 3)).eval(), scheme="dynamic", backend="llvm"
    )
    assert [reason in row.reason for row in q.report.rows] == [True, False]


@torch.no_grad()
def test_a_residual_network_in_one_plan() -> None:
    class Block(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
            self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.relu(self.norms[0](self.first(x)))
            return torch.relu(x + self.norms[1](self.second(y)))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 7, 2, 3), nn.ReLU(), Block(32), nn.MaxPool2d(2), Block(32),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)).eval()  # fmt: skip
    x = torch.randn(3, 3, 33, 37)
    q = fxquant.compile(model, scheme="dynamic", backend="llvm")
    assert sqnr([model(x)], [q(x)]) > 33
    (chosen,) = q._compiled.run._chosen.values()  # type: ignore[union-attr]
    assert isinstance(chosen, GraphForm)
    assert torch.equal(q(torch.cat((x[:1], 100 * x[1:])))[:1], q(x)[:1])


CHANNELS_LAST = torch.channels_last


@pytest.mark.parametrize("shape", [(2, 8, 9, 7), (1, 8, 1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.int8, torch.float16], ids=str)
@torch.no_grad()
def test_outputs_have_the_memory_format_of_inputs(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for model in (nn.Conv2d(8, 64, 3, padding=1), nn.Sequential(nn.Conv2d(8, 64, 3, padding=1), nn.ReLU())):
        q = fxquant.compile(model.eval(), scheme="dynamic", dtype=dtype, backend="llvm")
        for x in (torch.randn(shape), torch.randn(shape).contiguous(memory_format=CHANNELS_LAST)):
            wanted = model(x).stride()
            assert q(x).stride() == q(x).stride() == wanted


@pytest.mark.parametrize("layer", [nn.Linear(8, 64), nn.Conv2d(8, 64, 3), nn.LSTM(8, 8)], ids=str)
def test_tensors_that_kernels_cannot_read(layer: nn.Module) -> None:
    shape = (2, 8, 9, 9) if isinstance(layer, nn.Conv2d) else (2, 3, 8)
    q = fxquant.compile(layer.eval(), scheme="dynamic", backend="llvm")
    for x in (torch.empty(shape, device="meta"), torch.randn(shape).to_sparse()):
        with pytest.raises(fxquant.CallError, match="must be a dense tensor on the CPU"):
            q(x)


@torch.no_grad()
def test_an_override_asks_for_a_convolution_that_is_faster_in_fp32() -> None:
    torch.manual_seed(0)
    model, x = nn.Conv2d(32, 32, 3, padding=1, groups=32).eval(), torch.randn(2, 32, 9, 7)
    config = fxquant.QuantConfig(overrides={nn.Conv2d: "dynamic"})
    q = fxquant.compile(nn.Sequential(model), scheme="dynamic", config=config, backend="llvm")
    assert [row.precision for row in q.report.rows] == ["int8 dynamic"]
    assert sqnr([model(x)], [q(x)]) > 35 and torch.equal(q(x[1:]), q(x)[1:])


@torch.no_grad()
def test_depthwise_convolutions_have_fp16_weights() -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv2d(32, 32, 3, groups=32).eval(), torch.randn(2, 32, 9, 7)
    q = fxquant.compile(layer, scheme="dynamic", dtype=torch.float16, backend="llvm")
    assert [row.precision for row in q.report.rows] == ["fp16"]
    assert sqnr([layer(x)], [q(x)]) > 60


class Attends(nn.Module):
    """An image, and a value of four axes that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.tokens = nn.Conv2d(8, 32, 3, padding=1), nn.Linear(8, 32)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.tokens(x.flatten(2).transpose(1, 2)).unflatten(2, (4, 8)).transpose(1, 2)
        return self.image(x), tokens @ tokens.transpose(2, 3)


@torch.no_grad()
def test_only_images_are_in_channels_last() -> None:
    model, x = Attends().eval(), torch.randn(2, 8, 4, 5).contiguous(memory_format=CHANNELS_LAST)
    q = fxquant.compile(model, scheme="dynamic", backend="llvm")
    for _ in range(2):
        assert [y.stride() for y in q(x)] == [y.stride() for y in model(x)]
