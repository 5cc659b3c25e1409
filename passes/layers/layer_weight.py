"""The weight of a convolution, linear layer or normalization by its output and input channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...backends.base.op import OpRow
from ...backends.base.windows import padding_of


def by_channels(layer: nn.Module, row: OpRow) -> Tensor:
    """The weight of any kind of layer as ``(groups, outputs per group, inputs per group, window)``."""
    weight: Any = layer.weight
    groups = int(getattr(layer, "groups", 1))
    split: Tensor = weight.detach().reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return split if row.channel_axis == 0 else split.transpose(1, 2)


def output_channels(layer: nn.Module, row: OpRow) -> int:
    """The number of output channels."""
    weight: Any = layer.weight
    return int(weight.shape[0] if row.channel_axis == 0 else weight.shape[1] * getattr(layer, "groups", 1))


def input_channels(layer: nn.Module, row: OpRow) -> int:
    """The number of input channels of a weighted layer."""
    weight: Any = layer.weight
    return int(weight.shape[0] if row.channel_axis == 1 else weight.shape[1] * getattr(layer, "groups", 1))


def function_arguments(layer: nn.Module, row: OpRow) -> dict[str, Any]:
    """The arguments of ``row.functional``, besides input, weight and bias, that make it do what ``layer`` does."""
    arguments = {name: value for name in row.param_names if (value := getattr(layer, name, None)) is not None}
    return arguments | {"padding": padding_of(layer)} if "padding" in arguments else arguments


@torch.no_grad()
def rescale(layer: nn.Module, row: OpRow, outputs: Tensor | None = None, inputs: Tensor | None = None) -> None:
    """Multiply the output of the layer by ``outputs`` per channel, and its weight by ``inputs`` per input channel.

    ``inputs`` is for weighted layers only. Computed in double, so that several passes do not lose digits.
    """
    weight: Any = layer.weight
    bias: Any = getattr(layer, "bias", None)
    if row.weighted:
        split = by_channels(layer, row).double()
        groups = split.shape[0]
        if outputs is not None:
            split = split * outputs.double().reshape(groups, -1, 1, 1)
        if inputs is not None:
            split = split * inputs.double().reshape(groups, 1, -1, 1)
        if row.channel_axis == 1:
            split = split.transpose(1, 2)
        scaled = split.reshape(weight.shape)
    else:
        assert outputs is not None and inputs is None
        scaled = weight.double() * outputs.double()
    layer.weight = nn.Parameter(scaled.float(), weight.requires_grad)
    if outputs is not None and isinstance(bias, Tensor):
        layer.bias = nn.Parameter((bias.double() * outputs.double()).float(), bias.requires_grad)


@torch.no_grad()
def shift(layer: nn.Module, by: Tensor) -> None:
    """Add ``by``, one value per output channel, to the output of the layer. A layer without bias gets one."""
    bias: Any = getattr(layer, "bias", None)
    weight: Any = layer.weight
    shifted = by.double() if bias is None else bias.double() + by.double()
    layer.bias = nn.Parameter(shifted.float(), weight.requires_grad)
