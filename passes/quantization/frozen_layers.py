"""The layers of a frozen graph."""

from __future__ import annotations

from torch import fx

from ...backends.ops.units import Unit
from ...compiler.execution.graphs import attribute
from ..analysis.assignment import Assignment


def frozen_layers(gm: fx.GraphModule, assignment: Assignment) -> list[Unit]:
    """The int8 layers whose outputs are computed, in the order in which they run."""
    order = {n: i for i, n in enumerate(gm.graph.nodes)}
    return sorted((u for u in assignment.int8_layers if u.root in order), key=lambda u: order[u.root])


def integer_weight(unit: Unit) -> fx.Node:
    """The ``get_attr`` node of the integers of the weight."""
    weight: fx.Node = unit.root.args[1]  # type: ignore[assignment]
    return weight.args[0]  # type: ignore[return-value]


def bias_node(unit: Unit) -> fx.Node:
    """The ``get_attr`` node of the bias."""
    return unit.root.kwargs["bias"]  # type: ignore[return-value]


def channel_axis(gm: fx.GraphModule, unit: Unit) -> int:
    """The axis of the output channels in the output of the layer, counted from the end."""
    return 1 - attribute(gm, integer_weight(unit)).dim()
