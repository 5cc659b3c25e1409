"""The calls of weighted modules become functions over integer weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...backends.base.op import OpRow, Output
from ...backends.base.weights import IntegerWeight
from ...backends.ops.units import Unit
from ...compiler.core.memory import release_after
from ...compiler.numerics.quantize import dequantize_channels
from ..analysis.assignment import Assignment
from ..layers.layer_weight import function_arguments, output_channels
from ..layers.weight_grid import LayerWeight, quantize_weight


class WeightFreezer:
    """Freezes the weights of one graph; a layer that is called several times is rounded once.

    Args:
        gm: the graph.
        assignment: how the layers are quantized.
        trained: weights that are rounded already, by path.
    """

    def __init__(self, gm: fx.GraphModule, assignment: Assignment, trained: Mapping[str, IntegerWeight]) -> None:
        self.gm, self.assignment, self.trained = gm, assignment, trained
        self._done: dict[str, IntegerWeight] = {}

    def freeze(self, unit: Unit, top: Tensor | None) -> None:
        """Replace the call of a module by its function over an integer weight.

        Args:
            top: the largest input integer per channel, or None.
        """
        node, row, path = unit.root, unit.row, str(unit.root.target)
        layer = self.gm.get_submodule(path)
        if path not in self._done:
            self._done[path] = self._rounded(unit, layer, top)
            _hold(self.gm, path, self._done[path], layer, row)
            release_after([self._done[path].integers])
        graph = self.gm.graph
        with graph.inserting_before(node):
            parts = [graph.get_attr(f"{path}_int8_{name}") for name in ("weight", "scale", "zero_point")]
            weight = graph.call_function(dequantize_channels, (*parts, self._done[path].axis))
            bias = None if row.output is Output.WEIGHT_ONLY else graph.get_attr(f"{path}_int8_bias")
        arguments = function_arguments(layer, row)
        kwargs: dict[str, Any] = {"bias": bias, **arguments} if bias else arguments
        assert row.functional is not None
        node.op, node.target, node.args, node.kwargs = "call_function", row.functional, (node.args[0], weight), kwargs

    def _rounded(self, unit: Unit, layer: nn.Module, top: Tensor | None) -> IntegerWeight:
        path = str(unit.root.target)
        calls = sum(n.op == "call_module" and n.target == path for n in self.gm.graph.nodes)
        # A layer that is called again meets other inputs than those of this call.
        bound = top if calls == 1 else None
        of = LayerWeight(layer, unit.row, self.assignment.config_of(unit), self.assignment.backend)
        return self.trained.get(path) or quantize_weight(of, bound)


def _hold(gm: fx.GraphModule, path: str, weight: IntegerWeight, layer: nn.Module, row: OpRow) -> None:
    """Register the parts of a quantized weight, and a bias, as buffers beside the module that they come from."""
    owner_path, _, leaf = path.rpartition(".")
    owner = gm.get_submodule(owner_path)
    parts = {"weight": weight.integers, "scale": weight.scale, "zero_point": weight.zero_point}
    if row.output is not Output.WEIGHT_ONLY:
        bias = getattr(layer, "bias", None)
        given = bias if isinstance(bias, Tensor) else torch.zeros(output_channels(layer, row))
        parts["bias"] = given.detach().float().clone()
    for name, tensor in parts.items():
        owner.register_buffer(f"{leaf}_int8_{name}", tensor)
