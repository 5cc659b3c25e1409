"""Freeze: observers become literal quantize/dequantize pairs, weights become integers with their scales."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, fx, nn

from ...backends.base.frozen_nodes import quantize_behind
from ...backends.base.op import Output
from ...backends.base.weights import IntegerWeight
from ...backends.ops.units import Unit
from ...compiler.core.qparams import QParams
from ...compiler.execution.graphs import called_module
from ...compiler.numerics.observer import Observer
from ...compiler.numerics.quantize import dequantize, quantize
from ...compiler.numerics.stubs import DeQuantStub, observer_of
from ..analysis.assignment import Assignment
from ..base import PassResult, finish
from .freeze_weights import WeightFreezer
from .joined_observers import joined_observers, joined_qparams


@dataclass(frozen=True)
class Top:
    """The largest integers that calibration saw per channel, in a value of ``axes`` axes."""

    integers: Tensor
    axes: int


class Freeze:
    """Turns a calibrated graph into a frozen one. Rewrites are the quantized tensors, weights included.

    Every int8 value is a ``quantize`` followed by a ``dequantize`` with literal parameters, every op between them is a
    float op, and every quantized weight is a ``dequantize_channels`` of an integer buffer.

    Args:
        assignment: which ops are int8.
        trained: weights that are rounded already, by path.
    """

    name = "freeze"
    exact = False

    def __init__(self, assignment: Assignment, trained: Mapping[str, IntegerWeight] | None = None) -> None:
        self.assignment, self.trained = assignment, trained or {}
        self._qparams: dict[fx.Node, QParams] = {}
        self._tops: dict[fx.Node, Top] = {}

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        modules = dict(gm.named_modules())
        units = {u.output: u for u in self.assignment.int8_units}
        joined = joined_qparams(joined_observers(gm, self.assignment))
        weights = WeightFreezer(gm, self.assignment, self.trained)
        count = 0
        for node in list(gm.graph.nodes):
            module = called_module(node, modules)
            observer = observer_of(module)
            if observer is not None:
                self._freeze_observer(gm, node, observer, joined[observer])
                count += 1
            elif isinstance(module, DeQuantStub):
                node.replace_all_uses_with(node.args[0])
                gm.graph.erase_node(node)
            elif node in units:
                unit = units[node]
                if unit.row.weighted and unit.root.op == "call_module":
                    bound = _bound(modules[str(unit.root.target)], self._tops.get(unit.inputs[0]))
                    weights.freeze(unit, bound)
                    count += 1
                if unit.row.output is Output.SHARED:
                    count += self._share(gm, unit)
        gm.delete_all_unused_submodules()  # the float layers, and the observers
        finish(gm)
        return PassResult(count)

    def _freeze_observer(self, gm: fx.GraphModule, node: fx.Node, observer: Observer, known: QParams) -> None:
        pair = _insert_pair(gm, node.args[0], known, node)  # type: ignore[arg-type]
        node.replace_all_uses_with(pair)
        gm.graph.erase_node(node)
        self._qparams[pair] = known
        if observer.channel_high is not None:
            # Padding adds the zero point to the values seen.
            integers = ((observer.channel_high / known.scale).round() + known.zero_point).clamp_min(known.zero_point)
            self._tops[pair] = Top(integers, observer.dims)

    def _share(self, gm: fx.GraphModule, unit: Unit) -> int:
        """The output of a pass-through op gets the parameters of its input."""
        value, source = unit.output, unit.inputs[0]
        known = self._qparams[source]
        if unit.row.multiple:
            self._qparams[value] = known
            return 0
        if quantize_behind(value) is not None:
            return 0
        readers = list(value.users)
        pair = _insert_pair(gm, value, known, value)
        for reader in readers:
            reader.replace_input_with(value, pair)
        self._qparams[pair] = known
        if unit.row.keeps_channels and source in self._tops:
            self._tops[pair] = self._tops[source]
        return 1


def _insert_pair(gm: fx.GraphModule, value: fx.Node, known: QParams, after: fx.Node) -> fx.Node:
    literals = (known.scale, known.zero_point)
    with gm.graph.inserting_after(after):
        quantized = gm.graph.call_function(quantize, (value, *literals, known.qmin, known.qmax))
    with gm.graph.inserting_after(quantized):
        pair: fx.Node = gm.graph.call_function(dequantize, (quantized, *literals))
    quantized.meta, pair.meta = dict(value.meta), dict(value.meta)
    return pair


def _bound(layer: nn.Module, top: Top | None) -> Tensor | None:
    """The largest inputs of ``layer``; None if the channels of ``top`` are on another axis than its own."""
    weight = layer.weight
    return top.integers if top and isinstance(weight, Tensor) and top.axes == weight.dim() else None
