"""One batch in the fp32 and in the frozen graph, in which each int8 op can be exchanged for its other form."""

from __future__ import annotations

from collections import ChainMap
from dataclasses import dataclass
from typing import Any

from torch import fx

from ..backends.units import Unit, tensor_inputs
from ..passes.assign_precision import Assignment
from .lockstep import Twin
from .qdq import dequantize, literal_qparams, quantize_behind, round_trip
from .replay import Replay
from .types import QParams


def int8_nodes(assignment: Assignment) -> frozenset[fx.Node]:
    """All nodes of int8 ops."""
    return frozenset(node for unit in assignment.int8_units for node in unit.nodes)


@dataclass(frozen=True)
class Pair:
    """A batch in the fp32 and in the frozen graph, of whose nodes ``int8_nodes`` are those of int8 ops."""

    twin: Twin
    fp32: Replay
    int8: Replay
    int8_nodes: frozenset[fx.Node]

    def only(self, unit: Unit) -> Any:
        """The output when only ``unit`` rounds."""
        values = ChainMap(dict[fx.Node, Any](), self.int8.values)
        for ours, theirs in self._inputs(unit):
            exact = self.fp32.values[ours]
            values[theirs] = round_trip(exact, _qparams(theirs)) if theirs.target is dequantize else exact
        for node in unit.nodes:
            values[node] = self.int8.evaluate(node, values)
        result, behind = values[unit.output], _pair_behind(unit)
        return self.fp32.with_value(
            self.twin.of[unit.output], result if behind is None else round_trip(result, _qparams(behind))
        )

    def but(self, unit: Unit) -> Any:
        """The output when all but ``unit`` round: what no other int8 op gives or reads is not rounded, either."""
        values = ChainMap(dict[fx.Node, Any](), self.fp32.values)
        values |= {ours: self.int8.values[self._without_pair(theirs, unit)] for ours, theirs in self._inputs(unit)}
        for node in unit.nodes:
            values[self.twin.of[node]] = self.fp32.evaluate(self.twin.of[node], values)
        behind = _pair_behind(unit)
        unread = behind is not None and self.int8_nodes.isdisjoint(behind.users)
        place = behind if unread and behind is not None else unit.output
        return self.int8.with_value(place, values[self.twin.of[unit.output]])

    def _inputs(self, unit: Unit) -> zip[tuple[fx.Node, fx.Node]]:
        """The tensors that ``unit`` reads, in the fp32 and in the frozen graph."""
        return zip(tensor_inputs(self.twin.of[unit.root], unit.rule), unit.inputs, strict=True)

    def _without_pair(self, node: fx.Node, unit: Unit) -> fx.Node:
        """What ``node`` rounds for ``unit`` alone; ``node`` itself where others need it rounded."""
        if node.target is not dequantize or set(node.users) != {unit.root}:
            return node
        source: fx.Node = node.args[0].args[0]  # type: ignore[union-attr,assignment]
        return node if source in self.int8_nodes else source


def _pair_behind(unit: Unit) -> fx.Node | None:
    """The ``dequantize`` behind ``unit``."""
    behind = quantize_behind(unit.output)
    return next(iter(behind.users)) if behind is not None else None


def _qparams(pair: fx.Node) -> QParams:
    """Of a ``dequantize``."""
    return literal_qparams(pair.args[0])  # type: ignore[arg-type]
