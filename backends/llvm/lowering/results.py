"""What dynamic layers return, without values: running one in torch takes long, and only shapes matter."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...base.dynamic_layer import ReferenceLayer
from ...base.dynamic_spec import DynamicSpec
from ...base.windows import halo_of
from .gather import has_equal_bags


class PaddedReference(ReferenceLayer):
    """A recurrent layer over sequences of different lengths: forward(input, mask, state).

    Plain torch ignores the mask: it serves to find the shapes.
    """

    def forward(self, input: Any, *rest: Any, **options: Any) -> Any:
        return super().forward(input, *rest[1:], **options)


def empty_result(spec: DynamicSpec, *given: Any) -> Any:
    """Zeros like the result of a layer for these inputs; None: not known, or torch does not accept them.

    Args:
        given: the input, and initial states, in a tuple if they are those of an LSTM.

    Raises:
        RuntimeError: the input has another number of features.
    """
    layer: Any = spec.layer
    value, *rest = given
    if not isinstance(value, Tensor):
        return None
    if spec.op in ("embedding", "embedding_bag"):
        if rest or (spec.op == "embedding_bag" and not has_equal_bags(layer, value.dim())):
            return None
        rows = value.shape if spec.op == "embedding" else value.shape[:1]
        return torch.zeros(*rows, layer.embedding_dim, dtype=torch.float32, device="cpu")
    if spec.op == "linear":
        _check(value, "in_features", layer.in_features)
        return value.new_zeros(*value.shape[:-1], layer.out_features)
    if hasattr(layer, "kernel_size"):
        return _empty_image(layer, value)
    deep = hasattr(layer, "num_layers")
    if not hasattr(layer, "input_size") or value.dim() != 2 + deep:
        return None
    _check(value, "input_size", layer.input_size)
    channels = getattr(layer, "proj_size", 0) or layer.hidden_size
    directions = 1 + layer.bidirectional if deep else 1
    batch = value.shape[1 - layer.batch_first] if deep else value.shape[0]
    outer = (layer.num_layers * directions, batch) if deep else (batch,)
    states = (channels, layer.hidden_size) if spec.op.startswith("lstm") else (channels,)
    ends = tuple(value.new_zeros(*outer, size) for size in states)
    known = rest[0] if rest else None
    if known is not None:
        starts = tuple(known) if isinstance(known, list | tuple) else (known,)
        if [s.shape for s in starts] != [e.shape for e in ends]:
            return None
    last = ends if len(ends) > 1 else ends[0]
    return (value.new_zeros(*value.shape[:-1], channels * directions), last) if deep else last


def _empty_image(conv: Any, value: Tensor) -> Tensor | None:
    """The result of a convolution; None: torch does not accept its input."""
    if value.dim() != len(conv.stride) + 2 or value.shape[1] != conv.in_channels:
        return None
    windows = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    padding = [low + high for low, high in halo_of(conv)]
    spans = (n + p - w for n, p, w in zip(value.shape[2:], padding, windows, strict=True))
    sizes = [(span - 1) // stride + 1 for span, stride in zip(spans, conv.stride, strict=True)]
    if min(sizes) < 1 or not math.prod(value.shape[1:]):
        return None
    return value.new_zeros(value.shape[0], conv.out_channels, *sizes)


def _check(value: Tensor, name: str, size: int) -> None:
    if value.shape[-1] != size:
        raise RuntimeError(f"input.size(-1) must be {name}, {size}; got {value.shape[-1]}.")
