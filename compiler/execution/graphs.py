"""Copies of graphs, and the tensors that they hold."""

from __future__ import annotations

import linecache
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn


class ModelGraph(fx.GraphModule):
    """A graph module whose generated source is freed with it. ``torch.fx`` alone keeps the source of all for ever."""

    def recompile(self) -> Any:
        _forget_source(self.forward.__code__.co_filename)
        result = super().recompile()
        weakref.finalize(self, _forget_source, self.forward.__code__.co_filename).atexit = False
        return result


def _forget_source(key: str) -> None:
    if torch.fx.graph_module._loader.eval_cache.pop(key, None) is not None:
        linecache.cache.pop(key, None)


@dataclass(frozen=True)
class GraphCopy:
    """A copy of a graph.

    Attributes:
        module: the copy; it shares modules and tensors with the original.
        of: the node of the copy by that of the original, for all nodes but the output.
    """

    module: fx.GraphModule
    of: Mapping[fx.Node, fx.Node]


def copy_graph(gm: fx.GraphModule) -> GraphCopy:
    """Copy the graph of ``gm``. A rewrite of either leaves the other as it is."""
    graph, of = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.output(graph.graph_copy(gm.graph, of))
    return GraphCopy(ModelGraph(gm, graph), of)


def with_nodes(value: Any, of: Mapping[fx.Node, fx.Node]) -> Any:
    """``value`` with every node replaced by that of a copy; nodes that ``of`` does not have stay.

    Goes into dataclasses, dicts, lists, tuples and sets; dicts, lists and sets are copied.
    """
    if isinstance(value, fx.Node):
        return of.get(value, value)
    if is_dataclass(value) and not isinstance(value, type):
        old = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
        new = {name: with_nodes(field, of) for name, field in old.items()}
        return value if all(new[name] is old[name] for name in old) else replace(value, **new)
    if isinstance(value, Mapping):
        return {with_nodes(k, of): with_nodes(v, of) for k, v in value.items()}
    if isinstance(value, tuple):
        items = tuple(with_nodes(v, of) for v in value)
        return value if all(a is b for a, b in zip(items, value, strict=True)) else items
    if isinstance(value, list | set | frozenset):
        return type(value)(with_nodes(v, of) for v in value)
    return value


def called_module(node: fx.Node, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    """The module that ``node`` calls, of ``modules`` by path; None if it calls none."""
    return modules.get(str(node.target)) if node.op == "call_module" else None


def attribute(gm: nn.Module, node: fx.Node) -> Tensor:
    """The tensor that a ``get_attr`` node stands for."""
    value: Any = gm
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value
