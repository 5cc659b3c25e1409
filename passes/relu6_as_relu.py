"""Replace ReLU6 by ReLU, on request: the clamp at 6 is not scale-equivariant (Nagel et al. 2019, section 4.1)."""

from __future__ import annotations

from torch import fx

from ..backends.base import OpTable
from .base import PassResult, finish


class Relu6AsRelu:
    """Not exact: values above 6 are no longer clamped."""

    name = "relu6_as_relu"
    exact = False

    def __call__(self, gm: fx.GraphModule, table: OpTable) -> PassResult:
        hits = [n for n in gm.graph.nodes if n.op == "call_function" and n.target is table["relu6"].canonical]
        for node in hits:
            node.target = table["relu"].canonical
        finish(gm)
        return PassResult(len(hits), remarks=dict.fromkeys(hits, "was relu6 (relu6_as_relu=True)"))
