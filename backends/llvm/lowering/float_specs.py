"""Layers that stay fp32 and run by the rules of layers with rounded weights."""

from __future__ import annotations

import torch
from torch import fx, nn

from ...base.dynamic_spec import DynamicSpec, weight_names
from ...ops.table import OPS
from .builder import Builder

LAYERS = (nn.RNNBase, nn.RNNCellBase, nn.Embedding, nn.EmbeddingBag)


def float_spec(builder: Builder, node: fx.Node) -> DynamicSpec | None:
    """The fp32 layer of :data:`LAYERS` that a node calls; None if it calls none."""
    layer = builder.modules[str(node.target)] if node.op == "call_module" else None
    row = OPS.find(type(layer))
    if layer is None or row is None or not isinstance(layer, LAYERS):
        return None
    if layer.training and getattr(layer, "dropout", 0.0):
        return None
    weights = {name: layer.get_parameter(name).detach() for name in weight_names(layer)}
    return DynamicSpec(row.name, layer, weights) if all(w.dtype == torch.float32 for w in weights.values()) else None
