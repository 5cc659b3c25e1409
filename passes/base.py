"""The contract of a pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import fx


@dataclass(frozen=True)
class PassResult:
    """What a pass did.

    Attributes:
        rewrites: how many places it changed.
        refusals: why it left a node as it is that it might have changed.
        remarks: what it did to a node, for the report.
    """

    rewrites: int
    refusals: Mapping[fx.Node, str] = field(default_factory=dict)
    remarks: Mapping[fx.Node, str] = field(default_factory=dict)


class Pass(Protocol):
    """A rewrite of a normalized graph, in place. The :class:`~.runner.PassRunner` checks the contract.

    A pass leaves a graph that lints, with up-to-date code. It keeps the shapes of the values that remain. A second run
    of the same object rewrites nothing.

    Attributes:
        name: the name of the step.
        exact: whether outputs stay the same within fp32 rounding.
    """

    name: str
    exact: bool

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        """Rewrite ``gm`` in place."""
        ...


def finish(gm: fx.GraphModule) -> None:
    """Drop unused nodes and modules after a rewrite, check the graph and regenerate its code."""
    gm.graph.eliminate_dead_code()
    gm.delete_all_unused_submodules()
    gm.graph.lint()
    gm.recompile()
