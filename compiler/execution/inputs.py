"""The inputs of a graph for a call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx


def bind_inputs(gm: fx.GraphModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """The value of each placeholder of ``gm``, in order, for a call with ``args`` and ``kwargs``.

    Raises:
        TypeError: the call does not fit forward().
    """
    nodes = [n for n in gm.graph.nodes if n.op == "placeholder"]
    names = [str(n.target) for n in nodes]
    if len(args) > len(names):
        raise TypeError(f"forward() takes {len(names)} inputs ({', '.join(names)}), got {len(args)}")
    given = dict(zip(names, args, strict=False))
    unknown = [k for k in kwargs if k not in names or k in given]
    if unknown:
        raise TypeError(
            f"forward() has no input named {unknown[0]!r}, or it is given twice; its inputs are {', '.join(names)}"
        )
    given |= kwargs
    missing = [n for n, node in zip(names, nodes, strict=True) if n not in given and not node.args]
    if missing:
        raise TypeError(f"forward() needs input {missing[0]!r}; its inputs are {', '.join(names)}")
    return [given.get(n, node.args[0] if node.args else None) for n, node in zip(names, nodes, strict=True)]
