"""A graph whose values are kept, so that a change of one of them costs only what comes after it."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import MutableMapping
from typing import Any

import torch
from torch import fx

from .batches import Batch
from .lockstep import restored_rng
from .values import bind_inputs


class Replay:
    """One run of a graph on one batch. Ops that draw at random draw alike in every run, and in other graphs.

    Attributes:
        values: of every node.
        output: what the graph gives.
    """

    def __init__(self, gm: fx.GraphModule, batch: Batch) -> None:
        self._run = _Seeded(gm, garbage_collect_values=False)
        self._nodes = list(gm.graph.nodes)
        self._place = {node: place for place, node in enumerate(self._nodes)}
        self._inputs = bind_inputs(gm, *batch)
        self.output = self.again()
        self.values: dict[fx.Node, Any] = self._run.env

    def again(self) -> Any:
        """The output, computed from the start."""
        with torch.no_grad(), restored_rng():
            return self._run.run(*self._inputs)

    def evaluate(self, node: fx.Node, values: MutableMapping[fx.Node, Any]) -> Any:
        """What ``node`` gives where its inputs have ``values``."""
        self._run.env = values  # type: ignore[assignment]
        with torch.no_grad(), restored_rng():
            return self._run.run_node(node)

    def with_value(self, node: fx.Node, value: Any) -> Any:
        """What the graph would give, did ``node`` have ``value``: only what depends on it is computed."""
        changed = {node: value}
        self._run.env = ChainMap(changed, self.values)  # type: ignore[assignment]
        with torch.no_grad(), restored_rng():
            for later in self._nodes[self._place[node] + 1 :]:
                if not changed.keys().isdisjoint(later.all_input_nodes):
                    changed[later] = self._run.run_node(later)
        return changed.get(self._nodes[-1], self.output)


class _Seeded(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        torch.default_generator.manual_seed(0)
        return super().run_node(n)
