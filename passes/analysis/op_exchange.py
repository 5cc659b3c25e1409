"""One batch in the fp32 and in the frozen graph, in which each int8 op can be exchanged for its other form."""

from __future__ import annotations

from collections import ChainMap
from dataclasses import dataclass
from typing import Any

from torch import fx

from ...backends.base.frozen_nodes import is_dequantize, literal_qparams, quantize_behind
from ...backends.ops.units import Unit, tensor_inputs
from ...compiler.core.qparams import QParams
from ...compiler.execution.graphs import GraphCopy
from ...compiler.execution.replay import Replay
from ...compiler.execution.sample import Batch
from ...compiler.numerics.quantize import round_trip
from .assignment import Assignment


@dataclass(frozen=True)
class OpExchange:
    """A batch in both graphs.

    Attributes:
        exact: the fp32 graph, and its nodes by those of the frozen graph.
        fp32, int8: the run of each graph.
        int8_nodes: the nodes of all int8 ops.
    """

    exact: GraphCopy
    fp32: Replay
    int8: Replay
    int8_nodes: frozenset[fx.Node]

    @staticmethod
    def on(batch: Batch, frozen: fx.GraphModule, exact: GraphCopy, assignment: Assignment) -> OpExchange:
        """Both graphs run on ``batch``."""
        nodes = frozenset(node for unit in assignment.int8_units for node in unit.nodes)
        return OpExchange(exact, Replay(exact.module, batch), Replay(frozen, batch), nodes)

    def only(self, unit: Unit) -> Any:
        """The output if only ``unit`` is int8."""
        values = ChainMap(dict[fx.Node, Any](), self.int8.values)
        for ours, theirs in self._inputs(unit):
            exact = self.fp32.values[ours]
            values[theirs] = round_trip(exact, _qparams(theirs)) if is_dequantize(theirs) else exact
        for node in unit.nodes:
            values[node] = self.int8.evaluate(node, values)
        result, behind = values[unit.output], _pair_behind(unit)
        return self.fp32.with_value(
            self.exact.of[unit.output], result if behind is None else round_trip(result, _qparams(behind))
        )

    def all_except(self, unit: Unit) -> Any:
        """The output if all ops except ``unit`` are int8. Values that no other int8 op makes or reads stay fp32."""
        values = ChainMap(dict[fx.Node, Any](), self.fp32.values)
        values |= {ours: self.int8.values[self._without_pair(theirs, unit)] for ours, theirs in self._inputs(unit)}
        for node in unit.nodes:
            values[self.exact.of[node]] = self.fp32.evaluate(self.exact.of[node], values)
        behind = _pair_behind(unit)
        unread = behind is not None and self.int8_nodes.isdisjoint(behind.users)
        place = behind if unread and behind is not None else unit.output
        return self.int8.with_value(place, values[self.exact.of[unit.output]])

    def _inputs(self, unit: Unit) -> zip[tuple[fx.Node, fx.Node]]:
        """The tensors that ``unit`` reads, in the fp32 and in the frozen graph."""
        return zip(tensor_inputs(self.exact.of[unit.root], unit.row), unit.inputs, strict=True)

    def _without_pair(self, node: fx.Node, unit: Unit) -> fx.Node:
        """What ``node`` rounds, if it does so for ``unit`` alone; else ``node`` itself."""
        if not is_dequantize(node) or set(node.users) != {unit.root}:
            return node
        source: fx.Node = node.args[0].args[0]  # type: ignore[union-attr,assignment]
        return node if source in self.int8_nodes else source


def _pair_behind(unit: Unit) -> fx.Node | None:
    """The ``dequantize`` after ``unit``."""
    behind = quantize_behind(unit.output)
    return next(iter(behind.users)) if behind is not None else None


def _qparams(pair: fx.Node) -> QParams:
    """The parameters of a ``dequantize``."""
    return literal_qparams(pair.args[0])  # type: ignore[arg-type]
