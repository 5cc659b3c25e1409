"""The contract of a pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import fx

from ..backends.base import OpTable


@dataclass(frozen=True)
class PassResult:
    """What a pass did: how many rewrites, a remark for nodes it rewrote, a reason for each it nearly rewrote."""

    rewrites: int
    refusals: Mapping[fx.Node, str] = field(default_factory=dict)
    remarks: Mapping[fx.Node, str] = field(default_factory=dict)


class Pass(Protocol):
    """A rewrite of a normalised graph, in place.

    It keeps every value's shape, leaves a graph that lints, and a second run rewrites nothing. Where ``exact``
    is True the outputs stay within fp32 rounding.
    """

    name: str
    exact: bool

    def __call__(self, gm: fx.GraphModule, table: OpTable) -> PassResult:
        """Rewrite ``gm`` in place."""
        ...


def finish(gm: fx.GraphModule) -> None:
    """Drop what is unused after a rewrite, check the graph and regenerate its code."""
    gm.graph.eliminate_dead_code()
    gm.delete_all_unused_submodules()
    gm.graph.lint()
    gm.recompile()
