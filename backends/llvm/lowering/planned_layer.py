"""Dynamic layers with plans of their own, for a model that has no graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from ...base.dynamic_layer import DynamicLayer, ReferenceLayer
from ...base.dynamic_spec import DynamicSpec
from ...base.program import FrozenProgram
from ..codegen.isa import Isa
from .programs import PlannedProgram


class PlannedLayer(DynamicLayer):
    """A layer that is a program of one op. In a graph, the plan of the graph computes it.

    Args:
        spec: what the layer is.
        isa: the instruction set.
    """

    def __init__(self, spec: DynamicSpec, isa: Isa) -> None:
        kind = "fp32 products of fp16 weights" if spec.dtype == torch.float16 else "contraction, a scale per row"
        super().__init__(spec, f"{isa.name} {kind}{', relu' * spec.relu}")
        reference = ReferenceLayer(spec)
        self.spec = reference.spec
        graph = fx.Graph()
        graph.output(graph.call_module("layer", (graph.placeholder("input"),)))
        gm = fx.GraphModule(nn.ModuleDict({"layer": reference}), graph)
        self._program = [PlannedProgram(FrozenProgram(gm, ((), {})), isa)]  # in a list: not copied with the module

    def forward(self, input: Any) -> Any:
        (program,) = self._program
        return program(input)

    def unpacked(self, name: str) -> Tensor | None:
        return ReferenceLayer.unpacked(self, name)  # type: ignore[arg-type]


def planned_layer(spec: DynamicSpec, isa: Isa) -> DynamicLayer:
    """The layer of a specification."""
    return PlannedLayer(spec, isa)
