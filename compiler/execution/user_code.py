"""Whether a node runs code that is neither torch's nor ours, of which nothing is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn

_PACKAGE = f"{__name__.partition('.')[0]}."


def runs_user_code(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether ``node`` calls a module or function of the user; ``modules`` are those of the graph by path."""
    if node.op == "call_module":
        return any(map(_is_of_the_user, modules[str(node.target)].modules()))
    if node.op != "call_function":
        return False
    return not str(getattr(node.target, "__module__", "torch")).startswith(("torch", "_operator", "builtins", _PACKAGE))


def is_hooked(layer: nn.Module) -> bool:
    """Whether calling ``layer`` also runs forward hooks, as pruning and the old weight norm do."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


def _is_of_the_user(module: Any) -> bool:
    known = type(module).__module__.startswith(("torch.nn.", _PACKAGE))
    return not known or "forward" in vars(module)
