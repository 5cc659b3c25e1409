"""A graph whose values are kept, so that changing one of them costs only what depends on it."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from torch import fx

from .rng import SeededNodes
from .sample import Batch
from .visitor import Visitor

Form = Callable[[Mapping[fx.Node, Any]], Any]


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
        return self.with_forms({node: lambda values: value})

    def with_forms(self, forms: Mapping[fx.Node, Form]) -> Any:
        """The output of the graph if some nodes were computed by other functions, which are given the values so far.

        Only what depends on these nodes is computed.
        """
        changed: dict[fx.Node, Any] = {}
        env = ChainMap(changed, self.values)
        self._run.env = env  # type: ignore[assignment]
        with torch.no_grad():
            for node in self._nodes[min(self._place[n] for n in forms) :]:
                if node in forms:
                    changed[node] = forms[node](env)
                elif not changed.keys().isdisjoint(node.all_input_nodes):
                    changed[node] = self._run.run_node(node)
        return changed.get(self._nodes[-1], self.output)
