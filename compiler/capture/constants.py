"""What forward() computes from parameters and buffers alone is computed once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ..execution.graphs import called_module
from ..execution.rng import may_draw
from ..execution.visitor import Visitor
from .in_place import is_in_place

LARGEST_GROWTH = 4  # times the elements of the parameters: an expanded tensor is not worth its memory
SMALL = 2**16  # elements that any result may have


def evaluate_constants(gm: fx.GraphModule) -> int:
    """Replace values that depend on no input by buffers or numbers. Returns how many.

    So that weights that forward() computes (standardized, scaled, reshaped) count as weights of a layer. Not for
    training, in which they change.
    """
    constant = _constant_nodes(gm)
    run, replaced = Visitor(gm, keep_values=True), 0
    with torch.no_grad():
        for node in [n for n in gm.graph.nodes if n in constant]:
            try:
                run.env[node] = run.run_node(node)
            except Exception:  # it fails where it stands, with the user's line
                constant.discard(node)
    for node in [n for n in gm.graph.nodes if n in constant and n.op != "get_attr"]:
        if not constant.issuperset(node.users) and constant.issuperset(node.all_input_nodes):
            replaced += _replace(gm, node, run.env[node], sum(_size(run.env[n]) for n in node.all_input_nodes))
    for node in reversed(gm.graph.nodes):
        # Nothing else: an in-place op whose result is not read counts, too.
        if node in constant and not node.users:
            gm.graph.erase_node(node)
    gm.recompile()
    return replaced


def _constant_nodes(gm: fx.GraphModule) -> set[fx.Node]:
    modules = dict(gm.named_modules())
    written = {
        _origin(n) for n in gm.graph.nodes if n.op.startswith("call") and is_in_place(n, called_module(n, modules))
    }
    found = set[fx.Node]()
    for node in gm.graph.nodes:
        if node.op == "get_attr":
            if str(node.target) not in written:
                found.add(node)
        elif node.op in ("call_function", "call_method") and not node.is_impure() and not may_draw(node, modules):
            inputs = node.all_input_nodes
            if inputs and found.issuperset(inputs) and node.name not in written:
                found.add(node)
    return found


def _origin(node: fx.Node) -> str:
    """What an in-place op may write to: a parameter or buffer, or the result of a first op."""
    while node.args and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return str(node.target) if node.op == "get_attr" else node.name


def _replace(gm: fx.GraphModule, node: fx.Node, value: Any, before: int) -> bool:
    if isinstance(value, int | float | torch.Size):
        number = tuple(value) if isinstance(value, torch.Size) else value
        for user in list(node.users):
            user.args = fx.node.map_arg(user.args, lambda n: number if n is node else n)
            user.kwargs = fx.node.map_arg(user.kwargs, lambda n: number if n is node else n)
        return True
    if not isinstance(value, Tensor) or value.numel() > max(SMALL, LARGEST_GROWTH * before):
        return False
    name = f"{node.name}_constant"
    while hasattr(gm, name):
        name += "_"
    gm.register_buffer(name, value)
    with gm.graph.inserting_before(node):
        node.replace_all_uses_with(gm.graph.get_attr(name))
    return True


def _size(value: Any) -> int:
    return value.numel() if isinstance(value, Tensor) else 0
