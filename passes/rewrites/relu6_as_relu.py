"""Replace ReLU6 by ReLU: the clamp at 6 is not scale-equivariant (Nagel et al. 2019, section 4.1)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import fx

from ..base import PassResult, finish


class Relu6AsRelu:
    """Not exact: values above 6 are no longer clamped. Only on request."""

    name = "relu6_as_relu"
    exact = False

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        hits = [n for n in gm.graph.nodes if n.op == "call_function" and n.target is F.relu6]
        for node in hits:
            node.target = F.relu
        finish(gm)
        return PassResult(len(hits), remarks=dict.fromkeys(hits, "was relu6 (relu6_as_relu=True)"))
