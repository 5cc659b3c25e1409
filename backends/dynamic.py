"""Layers with fp32 in and out whose weights are int8 or fp16: the parts of dynamic quantization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
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
        return torch.int8 if all(isinstance(w, IntegerWeight) for w in self.weights.values()) else torch.float16

    @property
    def without_relu(self) -> Layer:
        """The layer before its ReLU."""
        return replace(self, relu=False)

    def rounded(self, *inputs: Any, **options: Any) -> Any:
        """The float layer's output with rounded weights: what kernels differ from by rounding activations only."""
        values = {n: w.dequantized() if isinstance(w, IntegerWeight) else w.float() for n, w in self.weights.items()}
        result = torch.func.functional_call(self.module, values, inputs, options)
        return torch.relu(result) if self.relu else result

    def vector(self, name: str) -> Tensor | None:
        """A parameter that stays fp32, such as ``bias``, or None."""
        value = getattr(self.module, name, None)
        return value.detach() if isinstance(value, Tensor) else None

    @property
    def bytes(self) -> int:
        """Of integers with their fp32 scales, or of fp16 weights, and of what stays fp32."""
        rest = (p for n, p in self.module.named_parameters(recurse=False) if n not in self.weights)
        weights = (w.bytes if isinstance(w, IntegerWeight) else tensor_bytes(w) for w in self.weights.values())
        return sum(map(tensor_bytes, rest)) + sum(weights)


class DynamicLayer(nn.Module):
    """What takes the place of a float layer: the same forward, on weights in a backend's form.

    It has the float layer's plain attributes (``in_features``, ``hidden_size``, ...), which a forward may read.

    Args:
        layer: what it is made of.
        kernel: the name of what runs it, for the report.
    """

    def __init__(self, layer: Layer, kernel: str) -> None:
        super().__init__()
        for name, value in vars(layer.module).items():
            if not name.startswith("_") and isinstance(value, int | float | str | tuple | None):
                setattr(self, name, value)
        self.training = False
        # Holds nothing; many a forward asks next(self.parameters()) for its dtype and device.
        self.like = nn.Parameter(torch.empty(0), requires_grad=False)
        self.kernel = kernel
        self.dtype, self.relu = layer.dtype, layer.relu
        self.is_half = layer.dtype == torch.float16  # TorchScript compares no dtypes
        self.weight_bytes = layer.bytes

    def extra_repr(self) -> str:
        return self.kernel

    def unpacked(self, name: str) -> Tensor | None:
        """``weight`` or ``bias`` in fp32 as it was rounded."""
        raise AttributeError(f"'{type(self).__name__}' has no '{name}': its weights are packed")

    def __getattr__(self, name: str) -> Any:
        # No property: TorchScript reads those. Unpacked at each use, for a forward that does more than call the layer.
        return self.unpacked(name) if name in ("weight", "bias") else super().__getattr__(name)


def weight_names(layer: nn.Module) -> list[str]:
    """The parameters of ``layer`` itself that are weights: those of two axes or more."""
    return [name for name, p in layer.named_parameters(recurse=False) if p.dim() > 1]


def probe(module: nn.Module) -> tuple[Any, ...]:
    """Small arguments of the forward, states of recurrent layers included; always the same."""
    seeded = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=seeded)

    m: Any = module
    if hasattr(m, "num_embeddings"):
        return (torch.randint(m.num_embeddings, (64, 5), generator=seeded),)
    if hasattr(m, "kernel_size"):
        return (normal(16, m.in_channels, *(3 for _ in m.kernel_size)),)
    if not hasattr(m, "input_size"):
        return (normal(64, m.in_features),)
    deep = hasattr(m, "num_layers")
    shape = (m.num_layers * (1 + m.bidirectional), 16, m.hidden_size) if deep else (64, m.hidden_size)
    state = normal(*shape).tanh()
    is_lstm = isinstance(module, nn.LSTM | nn.LSTMCell)
    x = normal(16, 16, m.input_size) if deep else normal(64, m.input_size)
    return x, (state, normal(*shape)) if is_lstm else state


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of its values."""
    return tensor.numel() * tensor.element_size()


def module_bytes(module: nn.Module) -> int:
    """Bytes of the parameters and buffers of ``module``, those of dynamic layers in their compiled form."""
    modules = set(module.modules())
    layers = {m for m in modules if isinstance(m, DynamicLayer)}
    kept = {t for m in modules - layers for t in (*m.parameters(recurse=False), *m.buffers(recurse=False))}
    return sum(m.weight_bytes for m in layers) + sum(map(tensor_bytes, kept))
