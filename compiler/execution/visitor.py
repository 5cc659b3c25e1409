"""Run a graph, and look at each value as soon as it is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from ..core.interrupts import checkpoint
from .inputs import bind_inputs
from .sample import Batch

Run = Callable[[fx.Node], Any]
See = Callable[[fx.Node, Any], Any]  # takes a node and its value, and returns the value to go on with


class Visitor(fx.Interpreter):
    """Runs a graph and calls ``see`` after each node. The one subclass of ``fx.Interpreter`` here.

    Args:
        module: the graph module.
        see: called with each node and its value; returns the value to go on with.
        around: called with each node and the function that runs it; returns its value.
        keep_values: keep every value in :attr:`env` to the end, instead of dropping it after its last reader.
        graph: the graph to run, if it is not that of ``module``.
        attributes: what ``get_attr`` and ``call_module`` nodes refer to, if ``module`` does not hold it.
    """

    def __init__(
        self,
        module: nn.Module,
        see: See | None = None,
        *,
        around: Callable[[fx.Node, Run], Any] | None = None,
        keep_values: bool = False,
        graph: fx.Graph | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(module, garbage_collect_values=not keep_values, graph=graph)
        self.see, self.around, self.attributes = see, around, attributes

    def visit(self, batch: Batch) -> Any:
        """Run on ``batch`` without gradients. Returns the output.

        Raises:
            TypeError: ``batch`` does not fit forward().
        """
        with torch.no_grad():
            return self.run(*bind_inputs(self.module, *batch))  # type: ignore[arg-type]

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """:meth:`visit`, called like forward()."""
        return self.visit((args, kwargs))

    def run_node(self, n: fx.Node) -> Any:
        checkpoint()
        run = super().run_node
        result = run(n) if self.around is None else self.around(n, run)
        return result if self.see is None else self.see(n, result)

    def fetch_attr(self, target: str) -> Any:
        return super().fetch_attr(target) if self.attributes is None else self.attributes[target]

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.attributes is None:
            return super().call_module(target, args, kwargs)
        return self.attributes[target](*args, **kwargs)
