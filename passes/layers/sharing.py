"""Which layers are used in one place only, so that a pass may change them."""

from __future__ import annotations

from collections import Counter

from torch import fx, nn

HOOKED = "it has forward hooks, which an int8 layer would not call"


class Sharing:
    """How often each module of a graph is used: called, inside a module that is called, or read by name.

    Layers that share a parameter but are called once each do not count: changing one gives it its own parameter.
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
        """Why ``layer`` must not be changed: it is used more than once. None if it is used once."""
        uses = self._uses[layer]
        return f"layer '{path}' is used {uses} times" if uses > 1 else None
