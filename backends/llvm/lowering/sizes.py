"""Shapes of all values of a program, and what depends on shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from ....compiler.execution.shapes import ValueInfo
from ....compiler.execution.visitor import Visitor
from ...base.dynamic_layer import spec_of
from ...base.op import Output
from ...ops.table import OPS
from .results import PaddedReference, empty_result


def sizes(gm: fx.GraphModule, given: Mapping[fx.Node, Any]) -> tuple[dict[fx.Node, ValueInfo], dict[fx.Node, Any]]:
    """Shape and dtype of each tensor, and the sizes that depend on shapes alone, from one run in torch."""
    infos: dict[fx.Node, ValueInfo] = {}
    statics: dict[fx.Node, Any] = {}
    modules = dict(gm.named_modules())

    def see(node: fx.Node, value: Any) -> Any:
        if isinstance(value, Tensor):
            infos[node] = ValueInfo(tuple(value.shape), value.dtype)
        elif node.op != "output" and _is_size(node, modules, statics):
            statics[node] = value
        return value

    def around(node: fx.Node, run: Callable[[fx.Node], Any]) -> Any:
        layer = modules.get(str(node.target)) if node.op == "call_module" else None
        spec = spec_of(layer)
        if spec is None or node.kwargs:
            return run(node)
        args: Any = map_arg(node.args, visitor.env.__getitem__)
        result = empty_result(spec, *(args[:1] + args[2:] if isinstance(layer, PaddedReference) else args))
        return run(node) if result is None else result

    visitor = Visitor(gm, see, around=around)
    with torch.no_grad():
        visitor.run(*given.values())
    return infos, statics


def _is_size(node: fx.Node, modules: Mapping[str, Any], statics: Mapping[fx.Node, Any]) -> bool:
    row = OPS.of(node, modules)
    if row is not None and row.output is Output.META:
        return True
    return node.op == "call_function" and all(n in statics for n in node.all_input_nodes)
