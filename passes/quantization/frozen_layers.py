"""The layers of a frozen graph, and the base of passes that adjust them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from ...backends.ops.units import Unit
from ...compiler.execution.graphs import GraphCopy, attribute
from ...compiler.execution.sample import Batch
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


class LayerAdjustment:
    """A pass that adjusts the layers of a frozen graph to the error of rounding, each layer once. Not exact.

    Args:
        exact: the graph in fp32, and its nodes by those of the frozen graph.
        assignment: how the layers are quantized.
        sample: calibration batches that may run at once.
    """

    exact = False

    def __init__(self, exact: GraphCopy, assignment: Assignment, sample: Sequence[Batch]) -> None:
        self._exact, self._assignment, self._sample = exact, assignment, sample
        self._done: set[fx.Node] = set()

    def _next_layers(self, gm: fx.GraphModule) -> list[Unit]:
        """The layers to adjust in this run, in the order in which they run."""
        layers = [u for u in frozen_layers(gm, self._assignment) if u.root not in self._done and self._wants(u)]
        self._done.update(u.root for u in layers)
        return layers

    def _wants(self, unit: Unit) -> bool:
        """Whether the configuration asks for the pass on this layer."""
        raise NotImplementedError
