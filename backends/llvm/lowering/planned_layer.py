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
from ...base.weights import IntegerWeight
from ...base.windows import is_pointwise
from ..codegen.isa import Isa
from .programs import PlannedProgram
from .results import PaddedReference
from .row_products import is_four_bits
from .weights import WeightStore


def _kind(spec: DynamicSpec) -> str:
    if spec.dtype == torch.float16:
        return "products with fp16 weights"
    window = hasattr(spec.layer, "kernel_size")
    return f"int8 products, a scale per {'row' if not window else 'pixel' if is_pointwise(spec.layer) else 'image'}"


class Programs:
    """The programs of a layer, by kind of call, and the weights that they share.

    Not a dict: what a layer has built is no state of the model.
    """

    def __init__(self) -> None:
        self.of: dict[Any, PlannedProgram] = {}
        self.store = WeightStore()

    def clear(self) -> None:
        self.of.clear()
        self.store = WeightStore()


class PlannedLayer(DynamicLayer):
    """A linear layer or convolution as a program of one op. In a graph, the plan of the graph computes it.

    Args:
        spec: what the layer is.
        isa: the instruction set.
    """

    def __init__(self, spec: DynamicSpec, isa: Isa) -> None:
        super().__init__(spec, f"{isa.name} {_kind(spec)}{_details(spec)}")
        self.weight_bytes -= sum(w.integers.numel() // 2 for w in _integers(spec) if _in_four_bits(spec, w))
        self._isa = isa
        self._reference = [ReferenceLayer(spec)]  # in a list: not a submodule
        self.spec = self._reference[0].spec
        self._programs = Programs()

    def __deepcopy__(self, memo: dict[int, Any]) -> PlannedLayer:
        return self  # it has no state

    def forward(self, input: Any) -> Any:
        return self._program()(input)

    def _program(self) -> PlannedProgram:
        known = self._programs.of.get(None)
        if known is None:
            graph = fx.Graph()
            graph.output(graph.call_module("layer", (graph.placeholder("input"),)))
            known = self._programs.of[None] = self._planned(graph, self._reference[0])
        return known

    def _planned(self, graph: fx.Graph, layer: nn.Module) -> PlannedProgram:
        gm = fx.GraphModule(nn.ModuleDict({"layer": layer}), graph)
        return PlannedProgram(FrozenProgram(gm, ((), {})), self._isa, self._programs.store)

    def release(self) -> None:
        self._programs.clear()

    def unpacked(self, name: str) -> Tensor | None:
        return self._reference[0].unpacked(name)


def _integers(spec: DynamicSpec) -> list[IntegerWeight]:
    return [w for w in spec.weights.values() if isinstance(w, IntegerWeight)]


def _in_four_bits(spec: DynamicSpec, weight: IntegerWeight) -> bool:
    """Depthwise kernels have no weights of 4 bits."""
    return is_four_bits(weight) and not getattr(spec.layer, "groups", 1) == weight.integers.shape[0] > 1


def _details(spec: DynamicSpec) -> str:
    """What the name of a kernel says of its weights and its output."""
    integers = _integers(spec)
    groups = sorted({w.integers[0].numel() // w.blocks for w in integers if w.blocks > 1})
    parts = {
        "fp16 weights of the input": bool(integers) and len(integers) < len(spec.weights),
        "4-bit weights": any(_in_four_bits(spec, w) for w in integers),
        f"a scale per {' or '.join(map(str, groups))} weights": bool(groups),
        "relu": spec.relu,
    }
    return "".join(f", {text}" for text, holds in parts.items() if holds)


class PlannedRecurrent(PlannedLayer):
    """``nn.LSTM``, ``nn.GRU``, ``nn.RNN`` or a cell: batched or not, packed sequences, initial states."""

    def __init__(self, spec: DynamicSpec, isa: Isa) -> None:
        super().__init__(spec, isa)
        self.is_lstm, self.is_cell = spec.op.startswith("lstm"), spec.op.endswith("cell")

    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> Any:
        if isinstance(input, PackedSequence):
            return self._packed_sequence(input, hx)
        if input.dim() == (1 if self.is_cell else 2):
            return self._single(input, hx)
        return self._call(hx, False, input)

    def _single(self, input: Tensor, hx: Any) -> Any:
        """Without a batch axis."""
        if self.is_cell:
            return map_state(self.forward(input[None], map_state(hx, lambda t: t[None])), lambda t: t[0])
        axis = 0 if self.batch_first else 1
        output, last = self.forward(input.unsqueeze(axis), map_state(hx, lambda t: t.unsqueeze(1)))
        return output.squeeze(axis), map_state(last, lambda t: t.squeeze(1))

    def _packed_sequence(self, packed: PackedSequence, hx: Any) -> Any:
        data, sizes, order, unsorted = packed
        if order is not None:
            hx = map_state(hx, lambda t: t.index_select(1, order))
        there = torch.arange(int(sizes[0])) < sizes[:, None]  # [time, batch]
        padded = data.new_zeros(*there.shape, data.shape[-1])
        padded[there] = data
        axes = (1, 0) if self.batch_first else (0, 1)
        output, last = self._call(hx, True, padded.permute(*axes, 2).contiguous(), there.float()[..., None])
        if unsorted is not None:
            last = map_state(last, lambda t: t.index_select(1, unsorted))
        return PackedSequence(output.permute(*axes, 2)[there], sizes, order, unsorted), last

    def _call(self, hx: Any, padded: bool, *inputs: Tensor) -> Any:
        states = () if hx is None else tuple(hx) if self.is_lstm else (hx,)
        key = len(states), padded
        known = self._programs.of.get(key)
        if known is None:
            layer = self._padded() if padded else self._reference[0]
            known = self._programs.of[key] = self._planned(self._graph(*key), layer)
        return known(*inputs, *states)

    def _padded(self) -> nn.Module:
        return PaddedReference(self.spec[0])

    def _graph(self, states: int, padded: bool) -> fx.Graph:
        """A call with so many initial states, and with a mask if sequences are padded."""
        graph = fx.Graph()
        inputs = [graph.placeholder(name) for name in ("input", "mask")[: 1 + padded]]
        given = [graph.placeholder(f"state{i}") for i in range(states)]
        call = graph.call_module("layer", (*inputs, *([tuple(given) if self.is_lstm else given[0]] if given else [])))
        ends = call if self.is_cell else graph.call_function(operator.getitem, (call, 1))
        result: Any = ends
        if self.is_lstm:
            result = tuple(graph.call_function(operator.getitem, (ends, i)) for i in range(2))
        graph.output(result if self.is_cell else (graph.call_function(operator.getitem, (call, 0)), result))
        return graph

    def flatten_parameters(self) -> None:
        """Nothing: the weights are packed."""


def map_state(state: Any, change: Any) -> Any:
    """``change`` of a state, or of both states of an LSTM; None is none."""
    if state is None:
        return None
    return tuple(change(t) for t in state) if isinstance(state, tuple | list) else change(state)
