"""The weight of a convolution, linear layer or normalisation by its output and input channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..backends.base import OpRule
from ..compiler.normalize import padding_of


def by_channels(layer: nn.Module, rule: OpRule) -> Tensor:
    """The weight as ``(groups, outputs per group, inputs per group, window)``, whatever the kind of layer."""
    weight: Any = layer.weight
    groups = int(getattr(layer, "groups", 1))
    split: Tensor = weight.detach().reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return split if rule.channel_axis == 0 else split.transpose(1, 2)


def output_channels(layer: nn.Module, rule: OpRule) -> int:
    """How many channels the layer gives."""
    weight: Any = layer.weight
    return int(weight.shape[0] if rule.channel_axis == 0 else weight.shape[1] * getattr(layer, "groups", 1))


def input_channels(layer: nn.Module, rule: OpRule) -> int:
    """How many channels a weighted layer reads."""
    weight: Any = layer.weight
    return int(weight.shape[0] if rule.channel_axis == 1 else weight.shape[1] * getattr(layer, "groups", 1))


def function_arguments(layer: nn.Module, rule: OpRule) -> dict[str, Any]:
    """What ``rule.functional`` takes beside the input, the weight and the bias, to do what ``layer`` does."""
    arguments = {name: value for name in rule.param_names if (value := getattr(layer, name, None)) is not None}
    return arguments | {"padding": padding_of(layer)} if "padding" in arguments else arguments


@torch.no_grad()
def rescale(layer: nn.Module, rule: OpRule, outputs: Tensor | None = None, inputs: Tensor | None = None) -> None:
    """Multiply what the layer gives per output channel by ``outputs``, and what it reads per input by ``inputs``.

    ``inputs`` is only for weighted layers. In double: the products of several passes must not lose digits.
    """
    weight: Any = layer.weight
    bias: Any = getattr(layer, "bias", None)
    if rule.weighted:
        split = by_channels(layer, rule).double()
        groups = split.shape[0]
        if outputs is not None:
            split = split * outputs.double().reshape(groups, -1, 1, 1)
        if inputs is not None:
            split = split * inputs.double().reshape(groups, 1, -1, 1)
        if rule.channel_axis == 1:
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
    """Add ``by``, one value per output channel, to what the layer gives; a layer without bias gets one."""
    bias: Any = getattr(layer, "bias", None)
    weight: Any = layer.weight
    shifted = by.double() if bias is None else bias.double() + by.double()
    layer.bias = nn.Parameter(shifted.float(), weight.requires_grad)
