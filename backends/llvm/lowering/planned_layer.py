"""Dynamic layers with plans of their own, for a model that has no graph."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.rnn import PackedSequence

from ...base.dynamic_layer import DynamicLayer, ReferenceLayer
from ...base.dynamic_spec import DynamicSpec
from ...base.program import FrozenProgram
from ..codegen.isa import Isa
from .programs import PlannedProgram

KINDS = {torch.int8: "int8 products, a scale per row", torch.float16: "products with fp16 weights"}


class PlannedLayer(DynamicLayer):
    """``nn.Linear`` as a program of one op. In a graph, the plan of the graph computes it.

    Args:
        spec: what the layer is.
        isa: the instruction set.
    """

    def __init__(self, spec: DynamicSpec, isa: Isa) -> None:
        super().__init__(spec, f"{isa.name} {KINDS[spec.dtype]}{', relu' * spec.relu}")
        self._reference = [ReferenceLayer(spec)]  # in lists: these are not submodules
        self.spec = self._reference[0].spec
        self._program = [PlannedProgram(self._graph(states=0), isa)]

    def _graph(self, states: int) -> FrozenProgram:
        """The program of a call with so many initial states."""
        graph = fx.Graph()
        graph.output(graph.call_module("layer", (graph.placeholder("input"),)))
        return self._of(graph)

    def _of(self, graph: fx.Graph) -> FrozenProgram:
        gm = fx.GraphModule(nn.ModuleDict({"layer": self._reference[0]}), graph)
        return FrozenProgram(gm, ((), {}))

    def forward(self, input: Any) -> Any:
        return self._program[0](input)

    def unpacked(self, name: str) -> Tensor | None:
        return self._reference[0].unpacked(name)


class PlannedRecurrent(PlannedLayer):
    """``nn.LSTM``, ``nn.GRU`` or ``nn.RNN``: batched or not, packed sequences, initial states."""

    def __init__(self, spec: DynamicSpec, isa: Isa) -> None:
        super().__init__(spec, isa)
        self.is_lstm = spec.op == "lstm"
        self._program.append(PlannedProgram(self._graph(states=1 + self.is_lstm), isa))

    def _graph(self, states: int) -> FrozenProgram:
        is_lstm = self.spec[0].op == "lstm"
        graph = fx.Graph()
        x, *given = (graph.placeholder(name) for name in ("input", "first", "second")[: 1 + states])
        call = graph.call_module("layer", (x, *([tuple(given) if is_lstm else given[0]] if states else [])))
        output, ends = (graph.call_function(operator.getitem, (call, i)) for i in range(2))
        if is_lstm:
            ends = tuple(graph.call_function(operator.getitem, (ends, i)) for i in range(2))  # type: ignore[assignment]
        graph.output((output, ends))
        return self._of(graph)

    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> Any:
        if isinstance(input, PackedSequence):
            return self._reference[0](input, hx)
        self._check(input, hx)
        if input.dim() == 2:
            axis = 0 if self.batch_first else 1
            state = None if hx is None else map_state(hx, lambda t: t.unsqueeze(1))
            output, last = self.forward(input.unsqueeze(axis), state)
            return output.squeeze(axis), map_state(last, lambda t: t.squeeze(1))
        if hx is None:
            return self._program[0](input)
        return self._program[1](input, *(hx if self.is_lstm else (hx,)))

    def flatten_parameters(self) -> None:
        """Nothing: the weights are packed."""

    def _check(self, input: Tensor, hx: Any) -> None:
        if input.shape[-1] != self.input_size:
            raise RuntimeError(f"input.size(-1) must be input_size, {self.input_size}; got {input.shape[-1]}.")


def refuse_projections(layer: nn.Module) -> str | None:
    """Why a recurrent layer has no int8 form."""
    return "no kernel for LSTMs with projections (proj_size)" if getattr(layer, "proj_size", 0) else None


def map_state(state: Any, change: Any) -> Any:
    """``change`` of a state, or of both states of an LSTM."""
    return tuple(change(t) for t in state) if isinstance(state, tuple | list) else change(state)


def planned_layer(spec: DynamicSpec, isa: Isa) -> DynamicLayer:
    """The layer of a specification."""
    return PlannedLayer(spec, isa) if spec.op == "linear" else PlannedRecurrent(spec, isa)
