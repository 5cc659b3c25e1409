"""Layers with fp32 in and out whose weights are int8 or fp16: the parts of dynamic quantization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .base import IntegerWeight, OpRule


@dataclass(frozen=True)
class Layer:
    """A float layer and what its weights become.

    Attributes:
        rule: its row in the table.
        module: the float layer, whose other parameters (biases) stay fp32.
        weights: its weights by the names of the parameters: integers, or fp16 tensors.
        relu: whether a ReLU behind it is part of it.
    """

    rule: OpRule
    module: nn.Module
    weights: Mapping[str, IntegerWeight | Tensor]
    relu: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """``torch.int8`` or ``torch.float16``."""
        return torch.int8 if self.integers else torch.float16

    def rounded(self, *inputs: Any, **options: Any) -> Any:
        """The float layer's output with rounded weights: what kernels differ from by rounding activations only."""
        values = {n: w.dequantized() if isinstance(w, IntegerWeight) else w.float() for n, w in self.weights.items()}
        result = torch.func.functional_call(self.module, values, inputs, options)
        return torch.relu(result) if self.relu else result

    @property
    def integers(self) -> dict[str, IntegerWeight]:
        """The weights that are integers: all, or none."""
        return {name: w for name, w in self.weights.items() if isinstance(w, IntegerWeight)}

    @property
    def halves(self) -> dict[str, Tensor]:
        """The weights that are fp16: all, or none."""
        return {name: w for name, w in self.weights.items() if isinstance(w, Tensor)}

    def vector(self, name: str) -> Tensor | None:
        """A parameter that stays fp32, such as ``bias``, or None."""
        value = getattr(self.module, name, None)
        return value.detach() if isinstance(value, Tensor) else None


class DynamicLayer(nn.Module):
    """What takes the place of a float layer: the same forward, on weights in a backend's form.

    Args:
        layer: what it is made of.
        kernel: the name of what runs it, for the report.
    """

    def __init__(self, layer: Layer, kernel: str) -> None:
        super().__init__()
        self.kernel = kernel
        self.dtype, self.relu = layer.dtype, layer.relu
        self.weight_bytes = _bytes(layer)

    def extra_repr(self) -> str:
        return self.kernel


def weight_names(layer: nn.Module) -> list[str]:
    """The parameters of ``layer`` itself that are weights: those of two axes or more."""
    return [name for name, p in layer.named_parameters(recurse=False) if p.dim() > 1]


def probe(module: nn.Module) -> Tensor:
    """A small input that ``module`` takes, always the same."""
    seeded = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=seeded)

    m: Any = module
    if hasattr(m, "num_embeddings"):
        return torch.randint(m.num_embeddings, (3, 5), generator=seeded)
    if hasattr(m, "kernel_size"):
        return normal(2, m.in_channels, *(d * k + 1 for d, k in zip(m.dilation, m.kernel_size, strict=True)))
    if hasattr(m, "input_size"):
        return normal(3, 2, m.input_size) if hasattr(m, "num_layers") else normal(3, m.input_size)
    return normal(3, m.in_features)


def module_bytes(module: nn.Module) -> int:
    """Bytes of the parameters and buffers of ``module``, those of dynamic layers in their compiled form."""
    modules = set(module.modules())
    layers = {m for m in modules if isinstance(m, DynamicLayer)}
    kept = {t for m in modules - layers for t in (*m.parameters(recurse=False), *m.buffers(recurse=False))}
    return sum(m.weight_bytes for m in layers) + sum(t.numel() * t.element_size() for t in kept)


def _bytes(layer: Layer) -> int:
    """Bytes of integers with their fp32 scales, or of fp16 weights, and of what stays fp32."""
    rest = sum(p.numel() * 4 for n, p in layer.module.named_parameters(recurse=False) if n not in layer.weights)
    integers = sum(w.integers.numel() + 4 * w.scale.numel() for w in layer.integers.values())
    return rest + integers + sum(2 * w.numel() for w in layer.halves.values())
