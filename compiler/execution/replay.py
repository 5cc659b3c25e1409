"""A graph whose values are kept, so that changing one of them costs only what depends on it."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import MutableMapping
from typing import Any

import torch
from torch import fx

from .rng import SeededNodes
from .sample import Batch
from .visitor import Visitor


class Replay:
    """One run of a graph on one batch. Ops that draw random numbers draw the same in every run and every graph.

    Attributes:
        values: the value of every node.
        output: the output of the graph.
    """

    def __init__(self, gm: fx.GraphModule, batch: Batch) -> None:
        seeded = SeededNodes(gm)
        self._run = Visitor(gm, around=lambda node, run: seeded.run(node, run, 0), keep_values=True)
        self._nodes = list(gm.graph.nodes)
        self._place = {node: place for place, node in enumerate(self._nodes)}
        self._batch = batch
        self.output = self.again()
        self.values: dict[fx.Node, Any] = self._run.env

    def again(self) -> Any:
        """The output, computed from the start."""
        return self._run.visit(self._batch)

    def evaluate(self, node: fx.Node, values: MutableMapping[fx.Node, Any]) -> Any:
        """The value of ``node`` where its inputs have ``values``."""
        self._run.env = values  # type: ignore[assignment]
        with torch.no_grad():
            return self._run.run_node(node)

    def with_value(self, node: fx.Node, value: Any) -> Any:
        """The output of the graph if ``node`` had ``value``. Only what depends on ``node`` is computed."""
        changed = {node: value}
        self._run.env = ChainMap(changed, self.values)  # type: ignore[assignment]
        with torch.no_grad():
            for later in self._nodes[self._place[node] + 1 :]:
                if not changed.keys().isdisjoint(later.all_input_nodes):
                    changed[later] = self._run.run_node(later)
        return changed.get(self._nodes[-1], self.output)
