"""Single layers of many shapes, bit by bit, on every instruction set."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxquant
from fxquant import QuantConfig
from fxquant.backends.llvm.codegen.isas import available

from .support import check_steps, frozen

CONFIG = QuantConfig(observer="minmax", mixed_precision=False)


def check(model: nn.Module, *shape: int) -> None:
    """All steps on the example and on another batch size, on one instruction set after the other."""
    torch.manual_seed(0)
    data = [(torch.randn(shape),) for _ in range(2)]
    try:
        program = frozen(model, data, config=CONFIG)
    except fxquant.ModelError as error:
        assert "nothing to quantize" in str(error)
        return
    for number, isa in enumerate(available()):
        x = data[0] if number % 2 else (torch.randn(shape[0] + 1, *shape[1:]),)
        assert check_steps(program, x, isa) >= 1


@given(
    axes=st.integers(1, 3), inputs=st.integers(1, 9), outputs=st.integers(1, 9), groups=st.integers(1, 3),
    window=st.integers(1, 4), stride=st.integers(1, 3), dilation=st.integers(1, 2), size=st.integers(5, 9),
    transposed=st.booleans(), depthwise=st.booleans(),
)  # fmt: skip
@settings(max_examples=10)
def test_convolutions(
    axes: int, inputs: int, outputs: int, groups: int, window: int, stride: int, dilation: int, size: int,
    transposed: bool, depthwise: bool,
) -> None:  # fmt: skip
    """Channels are chosen so that registers are full, half full and more than full."""
    if depthwise:
        inputs = outputs = groups = 11 * inputs
    else:
        inputs, outputs = inputs * groups, 7 * outputs * groups
    options: dict[str, Any] = {"stride": stride, "padding": window // 2, "groups": groups}
    if transposed and not depthwise and groups == 1:
        layer = getattr(nn, f"ConvTranspose{axes}d")(inputs, outputs, window, **options)
    else:
        layer = getattr(nn, f"Conv{axes}d")(inputs, outputs, window, dilation=dilation, **options)
    entry = getattr(nn, f"Conv{axes}d")(2, inputs, 1)
    check(nn.Sequential(entry, nn.ReLU(), layer), 2, 2, *[size + i for i in range(axes)])


@given(inputs=st.integers(1, 200), outputs=st.integers(1, 200), rows=st.integers(1, 40), middle=st.integers(0, 5))
@settings(max_examples=4)
def test_linear(inputs: int, outputs: int, rows: int, middle: int) -> None:
    check(
        nn.Sequential(nn.Linear(inputs, 33), nn.ReLU(), nn.Linear(33, outputs)), rows, *[middle] * (middle > 0), inputs
    )


@given(
    channels=st.integers(1, 140), window=st.integers(1, 4), stride=st.integers(1, 3), size=st.integers(5, 12),
    ceil=st.booleans(), kind=st.sampled_from(["max", "average", "adaptive"]),
)  # fmt: skip
@settings(max_examples=5)
def test_pools(channels: int, window: int, stride: int, size: int, ceil: bool, kind: str) -> None:
    pool = {
        "max": nn.MaxPool2d(window, stride, window // 2, ceil_mode=ceil),
        "average": nn.AvgPool2d(window, stride, window // 2),
        "adaptive": nn.AdaptiveAvgPool2d(1),
    }[kind]
    check(nn.Sequential(nn.Conv2d(3, channels, 1), pool, nn.Conv2d(channels, 4, 1)), 2, 3, size, size + 1)
