"""Which layers are used in one place only, so that a pass may change them for its sake."""

from __future__ import annotations

from collections import Counter

from torch import fx, nn

HOOKED = "it has forward hooks, which an int8 layer would not call"


def is_hooked(layer: nn.Module) -> bool:
    """Whether calling ``layer`` does more than its forward: pruning and the old weight norm work that way."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


class Sharing:
    """How often each module of a graph is used: called, inside another that is called, or its parameters by name.

    Layers that share a parameter but are called once each do not count: changing one gives it a parameter of its own.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        self._uses: Counter[nn.Module] = Counter()
        modules = dict(gm.named_modules(remove_duplicate=False))
        for node in gm.graph.nodes:
            if node.op == "call_module":
                self._uses.update(modules[str(node.target)].modules())
            elif node.op == "get_attr":
                self._uses.update([modules[str(node.target).rpartition(".")[0]]])

    def reason(self, layer: nn.Module, path: str) -> str | None:
        """Why ``layer`` must not be changed for one of its uses; None if it has no other."""
        uses = self._uses[layer]
        return f"layer '{path}' is used {uses} times" if uses > 1 else None
