"""Layers that stay fp32 and run by the rules of layers with rounded weights."""

from __future__ import annotations

import torch
from torch import fx, nn

from ...base.dynamic_spec import DynamicSpec
from ...ops.table import OPS
from .builder import Builder

LAYERS = (nn.RNNBase, nn.RNNCellBase, nn.Embedding, nn.EmbeddingBag)


def float_spec(builder: Builder, node: fx.Node) -> DynamicSpec | None:
    """The fp32 layer of :data:`LAYERS` that a node calls; None if it calls none."""
    layer = builder.modules[str(node.target)] if node.op == "call_module" else None
    row = OPS.find(type(layer))
    if layer is None or row is None or not isinstance(layer, LAYERS):
        return None
    if layer.training and getattr(layer, "dropout", False):
        return None
    # Not named_parameters(): weights may be tied.
    weights = {name: p.detach() for name, p in layer._parameters.items() if p is not None and p.dim() > 1}
    return DynamicSpec(row.name, layer, weights) if all(w.dtype == torch.float32 for w in weights.values()) else None
