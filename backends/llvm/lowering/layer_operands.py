"""What convolutions and linear layers read, of a program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.utils.parametrize import is_parametrized

from ....compiler.numerics.quantize import dequantize_channels
from .builder import Builder
from .lazy import read_form
from .steps import ElementwiseStep
from .storage import TOPS, Storage
from .terms import Form, Total
from .values import Value


@dataclass(frozen=True)
class Operands:
    """What a layer reads.

    Attributes:
        value: the input: integers, or fp32 of scale 1.
        scale, zero: of the input.
        weight: output channels first: integers, or fp32 for an input of fp32.
        scales: fp64, by output channel.
        bias: fp64, by output channel, or 0.
    """

    value: Value
    scale: float
    zero: int
    weight: Tensor
    scales: Tensor
    bias: Tensor | float

    @property
    def form(self) -> Form:
        """The output: a sum without the zero point of the input, scaled, and the bias."""
        factor = self.scale * self.scales
        if self.value.element == "f32":
            return Form.of(Total(), factor, self.bias)
        most = (factor * TOPS[self.value.element] * self.weight.double().abs().flatten(1).sum(1)).max()
        return Form.of(Total(), factor, self.bias, float(most + torch.as_tensor(self.bias).abs().max()))

    def without_zero(self, form: Form, weight: Tensor) -> Form:
        """``form`` over the sum that the kernel computes with ``weight``, in which each input has the zero point."""
        if not self.zero:
            return form
        return form.with_total(Form.of(Total(), 1.0, -self.zero * weight.double().flatten(1).sum(1)))


def read_operands(builder: Builder, node: fx.Node, axis: int) -> Operands | None:
    """Input and weight, both integers where they are and an int32 holds the sums, else fp32; None: torch's own forms.

    Args:
        axis: of the output channels in the weight.
    """
    argument: Any = node.args[0]
    known = builder.read(argument).plain
    integers = None
    if known is not None and known[0].element != "f32":
        integers = builder.store.read((node.name, "integers"), lambda: _integers(builder, node, axis))
    if known is not None and integers is not None:
        value, scale, zero = known
        weight, scales = integers
        largest = int(TOPS[value.element]) * int(weight.double().abs().flatten(1).sum(1).max())
        if largest < 2**31:
            if int(weight.min()) < -128 or int(weight.max()) > 127:
                # A zero point makes weights of 9 bits, which go with inputs of 16.
                words = Value.of(Storage("s16", value.shape, value.order(), zero=zero))
                builder.add(ElementwiseStep(node, read_form(value), words))
                value = words
            return Operands(value, scale, zero, weight, scales, _bias(builder, node))
    weight = builder.store.read((node.name, "floats"), lambda: _floats(builder, node, axis))
    if weight is None or builder.infos[node].dtype != torch.float32:
        return None
    ones = torch.ones(weight.shape[0], dtype=torch.double)
    return Operands(builder.float_value(argument), 1.0, 0, weight, ones, _bias(builder, node))


def _integers(builder: Builder, node: fx.Node, axis: int) -> tuple[Tensor, Tensor] | None:
    """The integers of a weight without their zero point, and the scale of each output channel."""
    weight = node.args[1] if len(node.args) > 1 else None
    if not isinstance(weight, fx.Node) or weight.target is not dequantize_channels or weight.args[3] != axis:
        return None
    integers, scale, zero_point = (builder.constant(n) for n in weight.args[:3])  # type: ignore[arg-type]
    if axis == 1:
        groups = int(builder.param(node, "groups", 1))
        integers, scale, zero_point = (
            _output_channels_first(integers, groups), scale.repeat(groups), zero_point.repeat(groups)
        )  # fmt: skip
    shifted = integers.short() - zero_point.short().reshape(-1, *[1] * (integers.dim() - 1))
    return shifted, scale.double().expand(shifted.shape[0])


def _output_channels_first(weight: Tensor, groups: int) -> Tensor:
    """[input channels, output channels of the group, taps...] with the output channels first."""
    return weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)


def _floats(builder: Builder, node: fx.Node, axis: int) -> Tensor | None:
    """The fp32 weight of a layer, output channels first."""
    weight = _float_weight(builder, node)
    if weight is None or not axis:
        return weight
    return _output_channels_first(weight, int(builder.param(node, "groups", 1)))


def _float_weight(builder: Builder, node: fx.Node) -> Tensor | None:
    if node.op == "call_module":
        layer: Any = builder.modules[str(node.target)]
        plain = getattr(layer, "padding_mode", "zeros") == "zeros" and not is_parametrized(layer)
        return layer.weight.detach() if plain and layer.weight.dtype == torch.float32 else None
    weight = node.args[1] if len(node.args) > 1 else None
    if not isinstance(weight, fx.Node) or weight.target is not dequantize_channels:
        return None  # a call that no layer could be made of, as something in it is computed
    return dequantize_channels(*(builder.constant(a) if isinstance(a, fx.Node) else a for a in weight.args))


def _bias(builder: Builder, node: fx.Node) -> Tensor | float:
    bias: Any = node.kwargs.get("bias")
    if node.op == "call_module":
        bias = builder.modules[str(node.target)].bias
    elif isinstance(bias, fx.Node):
        bias = builder.constant(bias)
    return 0.0 if bias is None else bias.detach().double()
