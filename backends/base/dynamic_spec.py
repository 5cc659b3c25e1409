"""Specifications of layers with int8 or fp16 weights that take and return fp32."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...compiler.core.tensors import tensor_bytes, total_bytes
from .weights import IntegerWeight

RoundedWeight = IntegerWeight | Tensor  # integers, or fp16; a backend may run fp32 in the same way


@dataclass(frozen=True, eq=False)
class DynamicSpec:
    """The specification of a layer, independent of any backend.

    Attributes:
        op: the name of the op.
        layer: the float layer with its options and biases; its weights have shapes, but no values (device "meta").
        weights: the rounded weights by the names of the parameters.
        relu: whether a ReLU after the layer is part of it.
    """

    op: str
    layer: nn.Module
    weights: Mapping[str, RoundedWeight]
    relu: bool = False

    @staticmethod
    def of(op: str, layer: nn.Module, weights: Mapping[str, RoundedWeight], relu: bool = False) -> DynamicSpec:
        """The specification of a float layer whose weights are rounded to ``weights``. ``layer`` is not changed."""
        memo: dict[int, Any] = {}
        for name in weights:
            weight = layer.get_parameter(name)
            memo[id(weight)] = nn.Parameter(weight.to("meta"), requires_grad=False)
        return DynamicSpec(op, copy.deepcopy(layer, memo).eval(), weights, relu)

    @property
    def dtype(self) -> torch.dtype:
        """``torch.int8`` if any weight has integers, else ``torch.float16``; fp32 specifications do not use it."""
        return torch.int8 if any(isinstance(w, IntegerWeight) for w in self.weights.values()) else torch.float16

    @property
    def without_relu(self) -> DynamicSpec:
        """The same layer without its ReLU."""
        return replace(self, relu=False)

    def run(self, *inputs: Any, **options: Any) -> Any:
        """The output of the float layer with the rounded weights; inputs are not rounded."""
        values = {n: w.dequantized() if isinstance(w, IntegerWeight) else w.float() for n, w in self.weights.items()}
        result = torch.func.functional_call(self.layer, values, inputs, options)
        return torch.relu(result) if self.relu else result

    def vector(self, name: str) -> Tensor | None:
        """A parameter that stays fp32, such as ``bias``, or None."""
        value = getattr(self.layer, name, None)
        return value.detach() if isinstance(value, Tensor) else None

    @property
    def bytes(self) -> int:
        """Bytes of integers with their fp32 scales, or of fp16 weights, and of the parameters that stay fp32."""
        rest = (p for n, p in self.layer.named_parameters(recurse=False) if n not in self.weights)
        weights = (w.bytes if isinstance(w, IntegerWeight) else tensor_bytes(w) for w in self.weights.values())
        return total_bytes(rest) + sum(weights)


def weight_names(layer: nn.Module) -> list[str]:
    """The names of the parameters of ``layer`` itself that are weights: those of two axes or more."""
    return [name for name, p in layer.named_parameters(recurse=False) if p.dim() > 1]


def example_inputs(layer: nn.Module) -> tuple[Any, ...]:
    """Small random arguments of the forward() of a float layer, initial states included. Always the same."""
    seeded = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=seeded)

    m: Any = layer
    if hasattr(m, "num_embeddings"):
        return (torch.randint(m.num_embeddings, (64, 5), generator=seeded),)
    if hasattr(m, "kernel_size"):
        sizes = (d * (k - 1) + 3 for k, d in zip(m.kernel_size, m.dilation, strict=True))
        return (normal(16, m.in_channels, *sizes),)
    if not hasattr(m, "input_size"):
        return (normal(64, m.in_features),)
    deep = hasattr(m, "num_layers")
    shape = (m.num_layers * (1 + m.bidirectional), 16, m.hidden_size) if deep else (64, m.hidden_size)
    state = normal(*shape[:-1], getattr(m, "proj_size", 0) or m.hidden_size).tanh()
    is_lstm = isinstance(layer, nn.LSTM | nn.LSTMCell)
    x = normal(16, 16, m.input_size) if deep else normal(64, m.input_size)
    return x, (state, normal(*shape)) if is_lstm else state
