"""Running a graph once on an example, to learn the shape and dtype of every value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from .types import ValueInfo


class _Recorder(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.values: dict[fx.Node, ValueInfo] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.values[n] = ValueInfo(tuple(result.shape), result.dtype)
        return result


def bind_inputs(gm: fx.GraphModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """The value of each placeholder of ``gm``, in order, for a call with ``args`` and ``kwargs``.

    Raises:
        TypeError: the call does not fit the forward.
    """
    nodes = [n for n in gm.graph.nodes if n.op == "placeholder"]
    names = [str(n.target) for n in nodes]
    if len(args) > len(names):
        raise TypeError(f"forward takes {len(names)} inputs ({', '.join(names)}), got {len(args)}")
    given = dict(zip(names, args, strict=False))
    unknown = [k for k in kwargs if k not in names or k in given]
    if unknown:
        raise TypeError(f"forward has no free input named {unknown[0]!r}; its inputs are {', '.join(names)}")
    given |= kwargs
    missing = [n for n, node in zip(names, nodes, strict=True) if n not in given and not node.args]
    if missing:
        raise TypeError(f"forward needs input {missing[0]!r}; its inputs are {', '.join(names)}")
    return [given.get(n, node.args[0] if node.args else None) for n, node in zip(names, nodes, strict=True)]


def run_values(gm: fx.GraphModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[fx.Node, ValueInfo]:
    """Shape and dtype of every tensor value of ``gm`` in one run on the given inputs."""
    recorder = _Recorder(gm)
    with torch.no_grad():
        recorder.run(*bind_inputs(gm, args, kwargs))
    return recorder.values


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors in an output, however nested in lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for v in value for t in tensors_of(v)] if isinstance(value, list | tuple) else []


def attribute(gm: nn.Module, node: fx.Node) -> Tensor:
    """The tensor that a ``get_attr`` node stands for."""
    value: Any = gm
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value
