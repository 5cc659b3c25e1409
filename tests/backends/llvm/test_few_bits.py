"""Weights of up to 4 bits, and scales for groups of inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant.backends.base.weights import IntegerWeight
from fxquant.backends.llvm.codegen.isas import available
from fxquant.compiler.core.errors import ConfigError
from fxquant.compiler.numerics.metrics import sqnr
from fxquant.compiler.numerics.quantize import round_trip_rows

from .support import made


@pytest.mark.parametrize("rows", [1, 5, 33])
@pytest.mark.parametrize("bits, group", [(8, 32), (4, None), (4, 16), (4, 48), (2, 32)])
@torch.no_grad()
def test_linear(rows: int, bits: int, group: int | None) -> None:
    """As integers and scales by the formula, up to the order of fp32 sums; the same bits on all instruction sets."""
    torch.manual_seed(0)
    layer, x = nn.Linear(96, 50), torch.randn(rows, 96)
    both = [made(layer, isa, weight_bits=bits, group_size=group) for isa in available()]
    outputs = [each.compiled(x) for each in both]
    assert all(torch.equal(outputs[0], o) for o in outputs[1:])
    (spec,) = both[0].reference.spec
    known = spec.weights["weight"]
    assert isinstance(known, IntegerWeight)
    groups = known.integers.double().unflatten(1, (-1, group or 96))
    scale = known.scale.double().reshape(50, -1, 1)
    assert groups.abs().max() == 2 ** (bits - 1) - 1 and scale.shape[1] == 96 // (group or 96)
    exact = round_trip_rows(x).double() @ (groups * scale).flatten(1).T + layer.bias
    assert torch.allclose(outputs[0].double(), exact, atol=5e-6)


def test_the_scale_of_a_group_is_that_of_its_largest_weight() -> None:
    """Groups whose sizes differ by orders of magnitude keep their precision."""
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 40), torch.randn(7, 64)
    layer.weight.data *= torch.logspace(-3, 0, 4).repeat_interleave(16)
    x /= torch.logspace(-3, 0, 4).repeat_interleave(16)
    with torch.no_grad():
        whole, grouped = (
            sqnr([layer.weight], [made(layer, None, weight_bits=4, group_size=size).reference.weight])
            for size in (None, 16)
        )
        shares = [
            sqnr([part], [other])
            for part, other in zip(layer.weight.split(16, 1),
                                   made(layer, None, weight_bits=4, group_size=16).reference.weight.split(16, 1),
                                   strict=True)
        ]  # fmt: skip
    assert grouped > whole and min(shares) > 18


LAYERS = {
    "conv2d": (nn.Conv2d(64, 24, 1), (2, 64, 3, 3)),
    "lstm": (nn.LSTM(64, 32, batch_first=True), (2, 5, 64)),
    "gru": (nn.GRU(64, 32, num_layers=2, bidirectional=True), (5, 2, 64)),
}


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_other_layers(name: str) -> None:
    torch.manual_seed(0)
    layer, shape = LAYERS[name]
    x = torch.randn(shape)
    both = [made(layer, isa, weight_bits=4, group_size=32) for isa in available()]
    outputs = [each.compiled(x) for each in both]
    first, *others = (o[0] if isinstance(o, tuple) else o for o in outputs)
    assert all(torch.equal(first, o) for o in others)
    (spec,) = both[0].reference.spec
    exact = spec.run(x)  # inputs are not rounded
    assert sqnr([exact[0] if isinstance(exact, tuple) else exact], [first]) > 30
    assert "4-bit weights, a scale per 32 weights" in both[0].compiled.kernel


def test_sizes_count_half_a_byte() -> None:
    layer = nn.Linear(128, 64)
    sizes = [
        made(layer, None, weight_bits=b, group_size=g).compiled.weight_bytes for b, g in ((8, None), (4, None), (4, 32))
    ]
    integers, scales, bias = 128 * 64, 4 * 64, 4 * 64
    assert sizes == [integers + scales + bias, integers // 2 + scales + bias, integers // 2 + 4 * scales + bias]


class Tied(nn.Module):
    """A language model whose last layer has the weights of its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 64)
        self.odd = nn.Linear(64, 40)
        self.middle = nn.Linear(40, 64)
        self.head = nn.Linear(64, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.middle(self.odd(self.embedding(x)))))


def test_a_model() -> None:
    torch.manual_seed(0)
    model, x = Tied().eval(), torch.randint(50, (3, 9))
    q = fxquant.compile(
        model, scheme="dynamic", config=fxquant.QuantConfig(weight_bits=4, group_size=32), backend="llvm"
    )
    with torch.no_grad():
        assert sqnr([model(x)], [q(x)]) > 15
    rows = {row.node: row for row in q.report.rows}
    assert "a scale per 32 weights" in rows["odd"].kernel and "a scale per 32 weights" in rows["head"].kernel
    assert "40 inputs are no multiple of group_size=32" in rows["middle"].reason
    assert "no kernel for embedding with group_size=32" in rows["embedding"].reason


@pytest.mark.parametrize("layer", [nn.Conv2d(64, 200, 1, padding=1), nn.Conv2d(64, 512, 1, groups=2)], ids=str)
@torch.no_grad()
def test_windows_of_one_pixel_that_are_no_linear_layers(layer: nn.Conv2d) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 64, 5, 4)
    both = made(layer, None, weight_bits=4, group_size=16)
    assert torch.allclose(both.compiled(x), both.reference(x), atol=1e-4)
    assert "no kernel for windows, groups or padding" in both.remark and "a scale per image" in both.compiled.kernel


@pytest.mark.parametrize("backend, size", [("x86", 32), ("llvm", 48), ("llvm", 1024)])
def test_a_size_that_suits_no_layer(backend: Any, size: int) -> None:
    config = fxquant.QuantConfig(weight_bits=4, group_size=size)
    model = nn.Sequential(nn.Linear(64, 640), nn.Linear(640, 1)).eval()  # the last layer becomes fp16
    with pytest.raises(ConfigError, match=f"No layer can have group_size={size}: "):
        fxquant.compile(model, scheme="dynamic", config=config, backend=backend)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"group_size": 8}, "multiple of 16"),
        ({"group_size": 40}, "multiple of 16"),
        ({"group_size": True}, "multiple of 16"),
        ({"group_size": "32"}, "multiple of 16"),
        ({"group_size": 32, "weight": "per_channel_affine"}, "needs weight='per_channel_symmetric'"),
    ],
)
def test_refused_configurations(config: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fxquant.QuantConfig(**config)  # type: ignore[arg-type]


def test_only_dynamic_layers_have_groups() -> None:
    model, data = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8)).eval(), [torch.randn(4, 64)]
    config = fxquant.QuantConfig(weight_bits=4, group_size=32)
    with pytest.raises(ConfigError, match="quantized at run time"):
        fxquant.compile(model, calibration=data, config=config)
    with pytest.raises(ConfigError, match="quantized at run time"):
        fxquant.prepare(model, "qat", calibration=data, config=config)
    with pytest.raises(ConfigError, match="are for integers"):
        fxquant.compile(model, scheme="dynamic", config=config, dtype=torch.float16)
    config = fxquant.QuantConfig(group_size=32, overrides={"0": "dynamic"})
    q = fxquant.compile(model, calibration=data, config=config, backend="llvm")
    kernels = {row.node: row.kernel for row in q.report.rows}
    assert "a scale per 32 weights" in kernels["0"] and "a scale per" not in kernels["2"]
