"""A graph run node by node, for several batches at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from .inputs import bind_inputs
from .rng import SeededNodes
from .sample import Batch
from .visitor import Visitor


class Stepper:
    """Runs a graph node by node, each node for all batches. A value is dropped after its last reader has run.

    Two steppers over two forms of a model give the values of both side by side. Ops that draw random numbers draw the
    same in both.
    """

    def __init__(self, gm: fx.GraphModule, batches: Sequence[Batch]) -> None:
        self._pending = deque(gm.graph.nodes)
        self._runs = [Visitor(gm) for _ in batches]
        for run, batch in zip(self._runs, batches, strict=True):
            run.args_iter = iter(bind_inputs(gm, *batch))
        self._seeded = SeededNodes(gm)
        self._constants: set[fx.Node] = set()
        self.outputs: list[Any] = []

    def through(self, node: fx.Node) -> list[Any]:
        """Run up to and including ``node``, which has not run yet. Returns its value for each batch."""
        while node in self._pending:
            self._step()
        return [run.env[node] for run in self._runs]

    def before(self, node: fx.Node) -> list[tuple[Any, ...]]:
        """Run up to ``node``, which has not run yet. Returns its positional arguments for each batch."""
        while self._pending[0] is not node:
            self._step()
        return [run.fetch_args_kwargs_from_env(node)[0] for run in self._runs]

    def finish(self) -> list[Any]:
        """Run to the end. Returns the outputs for each batch."""
        while self._pending:
            self._step()
        return self.outputs

    def change(self, node: fx.Node, how: Callable[[Any], Any]) -> None:
        """Replace the value of ``node``, which has just run."""
        for run in self._runs:
            run.env[node] = how(run.env[node])

    def _step(self) -> None:
        node = self._pending.popleft()
        # A value that depends on no input is the same for all batches.
        constant = node.op != "placeholder" and self._constants.issuperset(node.all_input_nodes)
        self._constants |= {node} if constant else set()
        with torch.no_grad():
            for number, run in enumerate(self._runs):
                shared = constant and run is not self._runs[0]
                first = self._runs[0].env
                run.env[node] = first[node] if shared else self._seeded.run(node, run.run_node, number)
                if node.op == "output":
                    self.outputs.append(run.env[node])
                for dead in run.user_to_last_uses.get(node, []):
                    del run.env[dead]
