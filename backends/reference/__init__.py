"""The reference backend: the frozen graph itself, in plain torch ops. The oracle of the tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.rnn import PackedSequence

from ...compiler.qdq import round_trip
from ...compiler.types import affine_qparams
from ..base import Frozen, Lowered, OpTable, Target
from ..dynamic import DynamicLayer, Layer


class ReferenceLayer(DynamicLayer):
    """A layer with int8 or fp16 weights in plain torch ops."""

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer, "reference")
        self.rounded_layer = layer

    def forward(self, input: Any, *rest: Any, **options: Any) -> Any:
        if isinstance(input, PackedSequence):
            input = input._replace(data=self._rounded(input.data))
        else:
            input = self._rounded(input)
        return self.rounded_layer.rounded(input, *rest, **options)

    def unpacked(self, name: str) -> Tensor | None:
        if name == "bias":
            return self.rounded_layer.vector("bias")
        weight = self.rounded_layer.weights["weight"]
        return weight.float() if isinstance(weight, Tensor) else weight.dequantized()

    def _rounded(self, x: Tensor) -> Tensor:
        """``x`` with one scale and zero point, those of its range, if it is float and the weights are integers."""
        if not x.is_floating_point() or self.dtype != torch.int8 or not x.numel():
            return x
        return round_trip(x, affine_qparams(float(x.min()), float(x.max())))


class ReferenceBackend:
    """Runs the frozen graph of another backend as it stands.

    Args:
        table: of the backend whose graphs are run.
        target: what it compiles for.
    """

    name = "reference"

    def __init__(self, table: OpTable, target: Target) -> None:
        self.table, self.target = table, target

    def weight_scale_floor(
        self, layer: nn.Module, weight: Tensor, top: Tensor | None, rounding: float = 0.5
    ) -> Tensor | None:
        """None: fp32 sums do not saturate."""
        return None

    def dynamic(self, layer: Layer) -> DynamicLayer:
        """The float layer on rounded weights, its input rounded on the fly; states inside of it stay fp32."""
        return ReferenceLayer(layer)

    def graph_forms(self, gm: fx.GraphModule) -> list[Callable[..., Any]]:
        """The graph itself."""
        return [gm.forward]

    def latencies(self, frozen: Frozen) -> None:
        """None: it is no measure of speed."""

    def lower(self, frozen: Frozen) -> Lowered:
        """The frozen graph as it is."""
        gm: fx.GraphModule = frozen.module
        kernels = {n: "reference" for n in gm.graph.nodes if n.op in ("call_function", "call_module")}
        size = sum(b.numel() * b.element_size() for b in (*gm.buffers(), *gm.parameters()))
        return Lowered(gm, frozen, kernels, size)
