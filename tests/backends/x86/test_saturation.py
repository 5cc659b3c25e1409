"""Kernels without VNNI on the largest inputs that our weights allow: exact integer arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fxquant.backends.base.backend import Target
from fxquant.backends.base.weights import IntegerWeight
from fxquant.backends.x86.backend import X86Backend
from fxquant.backends.x86.bindings.saturation import HEADROOM
from fxquant.backends.x86.kernels import calls
from fxquant.backends.x86.runtime.engine import available, run_under
from fxquant.compiler.core.config import QuantConfig
from fxquant.passes.dynamic.layer_maker import row_of
from fxquant.passes.layers.weight_grid import LayerWeight, quantize_weight

from .support import compiled, oracle, output_step, seeded

Q = torch.ops.quantized
AVX2 = Target(vnni=False)
VNNI = Target(vnni=True)
NARROW = QuantConfig()


def weight_of(
    layer: nn.Module, top: Tensor | None, target: Target = AVX2, config: QuantConfig = NARROW
) -> IntegerWeight:
    """The layer's integers, as the freeze pass makes them for `target`."""
    backend = X86Backend(target)
    return quantize_weight(LayerWeight(layer, row_of(layer), config, backend), top)


def worst_inputs(weight: Tensor, high: Tensor, groups: int, size: tuple[int, ...]) -> list[Tensor]:
    """Integers up to `high` per channel: all at the top; only where a filter's weight is positive; or negative.

    The last two are made for windows that a filter fits exactly: one image per filter and sign.
    """
    full = high.reshape(1, -1, *[1] * len(size)).expand(1, -1, *size).contiguous()
    found = [full]
    if tuple(weight.shape[2:]) == size:
        outputs, channels = weight.shape[:2]
        for sign in (1, -1):
            images = torch.zeros(outputs, channels * groups, *size, dtype=torch.uint8)
            for o in range(outputs):
                group = o // (outputs // groups)
                own = slice(group * channels, (group + 1) * channels)
                images[o, own] = full[0, own] * (weight[o] * sign > 0)
            found.append(images)
    return found


def exact(layer: nn.Module, quantized: IntegerWeight, x: Tensor) -> Tensor:
    """The sum of products of integers, in float64."""
    w = quantized.integers.double() - quantized.zero_point.double().reshape(-1, *[1] * (quantized.integers.dim() - 1))
    if isinstance(layer, nn.Linear):
        return F.linear(x.double(), w)
    assert isinstance(layer, nn.Conv2d)
    return F.conv2d(x.double(), w, None, layer.stride, layer.padding, layer.dilation, layer.groups)


def kernel(layer: nn.Module, quantized: IntegerWeight, x: Tensor, engine: str, scale: float, zero: int) -> Tensor:
    """What the engine's kernel makes of integers `x`: output integers at `scale`, all weight scales being 1."""
    ones = torch.ones(quantized.integers.shape[0], dtype=torch.float64)
    zeros = quantized.zero_point.long().expand(len(ones)).contiguous()
    w = torch._make_per_channel_quantized_tensor(quantized.integers, ones, zeros, 0)
    if x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    qx = torch._make_per_tensor_quantized_tensor(x, 1.0, 0)
    if isinstance(layer, nn.Linear):
        packed = run_under(engine, Q.linear_prepack, w, None)
    else:
        assert isinstance(layer, nn.Conv2d)
        options = list(layer.stride), list(layer.padding), list(layer.dilation)
        packed = run_under(engine, Q.conv2d_prepack, w, None, *options, layer.groups)
    run: Any = Q.linear.default if isinstance(layer, nn.Linear) else Q.conv2d.new
    result: Tensor = run_under(engine, run, qx, packed, scale, zero)
    return result.int_repr()


def check(layer: nn.Module, quantized: IntegerWeight, high: Tensor, engine: str, size: tuple[int, ...]) -> None:
    """All sums agree; a step of the output is fine enough to see one saturated pair (an error above 255)."""
    groups = getattr(layer, "groups", 1)
    for x in worst_inputs(quantized.integers, high, groups, size):
        sums = exact(layer, quantized, x)
        scale = max(float(sums.abs().max()) / 127, 1.0)
        # A power of two makes the division by it exact, so that there is one right result.
        scale = 2.0 ** torch.tensor(scale).log2().ceil().item()
        expected = (torch.round(sums / scale) + 128).clamp(0, 255)
        actual = kernel(layer, quantized, x, engine, scale, 128)
        assert torch.equal(actual.double(), expected), f"off by {(actual - expected).abs().max() * scale:.0f}"


def layer_of(kind: str, channels: int, outputs: int, spread: float = 1.0) -> nn.Module:
    """A layer whose weights have large neighbors of one sign, which is the worst for pairs."""
    makers: dict[str, Any] = {
        "conv_even": lambda: nn.Conv2d(channels, outputs, 3, bias=False),
        "pointwise": lambda: nn.Conv2d(channels, outputs, 1, bias=False),
        "image": lambda: nn.Conv2d(3, outputs, 3, bias=False),
        "depthwise_3x3": lambda: nn.Conv2d(channels, channels, 3, groups=channels, bias=False),
        "depthwise_5x5": lambda: nn.Conv2d(channels, channels, 5, groups=channels, bias=False),
        "grouped": lambda: nn.Conv2d(2 * channels, 2 * outputs, 3, groups=2, bias=False),
        "linear": lambda: nn.Linear(channels, outputs, bias=False),
    }
    layer: nn.Module = makers[kind]()
    with torch.no_grad():
        weight = layer.weight
        assert isinstance(weight, Tensor)
        signs = torch.sign(torch.randn(weight.shape[0], *[1] * (weight.dim() - 1)))
        weight.copy_(signs * (1 - spread * 0.5 * torch.rand_like(weight)))
    return layer


KINDS = ("conv_even", "pointwise", "image", "depthwise_3x3", "depthwise_5x5", "grouped", "linear")


def highest(layer: nn.Module, top: Tensor | None) -> Tensor:
    """The largest integer per input channel that the floor allows for."""
    count = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    assert isinstance(count, int)
    if top is None:
        return torch.full((count,), 255, dtype=torch.uint8)
    return (top * HEADROOM).clamp(0, 255).floor().to(torch.uint8)


def size_of(layer: nn.Module) -> tuple[int, ...]:
    return () if isinstance(layer, nn.Linear) else tuple(layer.kernel_size)  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", available())
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("known", (False, True), ids=("any_input", "known_input"))
def test_worst_inputs_are_exact(kind: str, engine: str, known: bool) -> None:
    layer = seeded(lambda: layer_of(kind, 16, 8))
    channels = highest(layer, None).numel()
    top = seeded(lambda: torch.randint(60, 200, (channels,)).float(), 1) if known else None
    quantized = weight_of(layer, top)
    high = highest(layer, top)
    check(layer, quantized, high, engine, size_of(layer))
    if not isinstance(layer, nn.Linear):
        check(layer, quantized, high, engine, tuple(k + 5 for k in size_of(layer)))


@pytest.mark.parametrize("engine", available())
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    channels=st.integers(1, 40),
    outputs=st.integers(1, 20),
    seed=st.integers(0, 1000),
    spread=st.sampled_from((0.0, 1.0, 3.0)),
    known=st.booleans(),
)
def test_any_shape_is_exact(
    engine: str, kind: str, channels: int, outputs: int, seed: int, spread: float, known: bool
) -> None:
    layer = seeded(lambda: layer_of(kind, channels, outputs, spread), seed)
    count = highest(layer, None).numel()
    top = seeded(lambda: torch.randint(0, 256, (count,)).float(), seed) if known else None
    check(layer, weight_of(layer, top), highest(layer, top), engine, size_of(layer))


@pytest.mark.parametrize("kind", KINDS)
def test_affine_weights_are_exact(kind: str) -> None:
    layer = seeded(lambda: layer_of(kind, 16, 8))
    quantized = weight_of(layer, None, config=QuantConfig(weight="per_channel_affine"))
    check(layer, quantized, highest(layer, None), "fbgemm", size_of(layer))


@pytest.mark.parametrize("kind", KINDS)
def test_no_floor_with_vnni(kind: str) -> None:
    layer = seeded(lambda: layer_of(kind, 16, 8))
    quantized = weight_of(layer, None, VNNI)
    assert (quantized.integers.flatten(1).int().abs().amax(1) == 127).all()
    assert X86Backend(VNNI).weight_scale_floor(layer, layer.weight, None) is None
    # ... and without it there is one: all weights are near the largest.
    assert (weight_of(layer, None).integers.flatten(1).int().abs().amax(1) < 127).any()


@pytest.mark.parametrize("engine", available())
def test_padding_counts_as_input(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros around an image are its zero point: 255 where all values are negative."""
    monkeypatch.setattr(calls, "available", lambda: (engine,))
    model = seeded(lambda: nn.Sequential(nn.Conv2d(8, 8, 3, padding=1)))
    with torch.no_grad():
        model[0].weight.abs_()
    data = [seeded(lambda: (-torch.rand(2, 8, 8, 8) - 1,), s) for s in (1, 2)]
    q = compiled(model, data, target=AVX2)
    step = output_step(q)
    assert step is not None
    assert (q(*data[0]) - oracle(q, *data[0])).abs().max() <= 1.01 * step
