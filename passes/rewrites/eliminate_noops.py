"""Remove ops that do nothing at inference: identity, dropout in eval mode, ``contiguous``, ``detach``."""

from __future__ import annotations

from collections.abc import Container

from torch import fx

from ...backends.base.op import Call
from ...backends.ops.table import OPS
from ...compiler.execution.graphs import called_module
from ..base import PassResult, finish


class EliminateNoops:
    """Exact: the row of an op says which calls do nothing.

    Args:
        keep: nodes that stay.
    """

    name = "eliminate_noops"
    exact = True

    def __init__(self, keep: Container[fx.Node] = ()) -> None:
        self.keep = keep

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        modules = dict(gm.named_modules())
        count = 0
        for node in list(gm.graph.nodes):
            row = OPS.of(node, modules)
            if row is None or row.noop is None or node in self.keep:
                continue
            module = called_module(node, modules)
            if row.noop(Call(node, module, {})):
                node.replace_all_uses_with(node.args[0])
                gm.graph.erase_node(node)
                count += 1
        if count:
            finish(gm)
        return PassResult(count)
