"""Merge linear layers that read one value, such as query, key and value projections, into one wide layer.

The input is then quantized, and the kernel started, once.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Hashable

import torch
from torch import fx, nn

from ...backends.ops.table import OPS
from ...compiler.execution.graphs import called_module
from ..base import PassResult, finish
from ..layers.sharing import Sharing

# Ops without a row may fail on a slice of the wide output.
NEEDS_CONTIGUOUS = "a reader of its output, or of a view of it, may need a contiguous tensor"


class MergeLinears:
    """Exact. Leaves layers that are used more than once, or whose readers may need contiguous outputs.

    Args:
        kind: by path, what must be equal for layers to be merged; None leaves a layer as it is.

    Attributes:
        merged: the paths of the layers that became one, by the path of that one.
    """

    name = "merge_linears"
    exact = True

    def __init__(self, kind: Callable[[str], Hashable | None]) -> None:
        self.kind = kind
        self.merged: dict[str, list[str]] = {}

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        modules = dict(gm.named_modules())
        sharing = Sharing(gm)
        uses = Counter(p for _, p in gm.named_parameters(remove_duplicate=False))
        groups: dict[Hashable, list[fx.Node]] = {}
        refusals: dict[fx.Node, str] = {}
        for node in gm.graph.nodes:
            layer = called_module(node, modules)
            if type(layer) is not nn.Linear:
                continue
            kind = self.kind(str(node.target))
            if kind is None or len(node.args) != 1 or not isinstance(node.args[0], fx.Node):
                continue
            reason = sharing.reason(layer, str(node.target))
            if uses[layer.get_parameter("weight")] > 1:
                reason = "another layer has the same weight"
            reason = reason or (None if _takes_strides(node, modules) else NEEDS_CONTIGUOUS)
            if reason:
                refusals[node] = f"not merged: {reason}"
            else:
                has_bias = layer.bias is not None
                groups.setdefault((node.args[0], kind, has_bias), []).append(node)
        remarks, count = {}, 0
        for nodes in groups.values():
            if len(nodes) > 1:
                paths = [str(n.target) for n in nodes]
                whole = _merge(gm, nodes)
                self.merged[str(whole.target)] = paths
                remarks[whole] = "merged: " + ", ".join(paths)
                count += 1
        finish(gm)
        siblings = {n for n in refusals if sum(u.op == "call_module" for u in n.args[0].users) > 1}  # type: ignore[union-attr]
        return PassResult(count, {n: r for n, r in refusals.items() if n in siblings}, remarks)


def _takes_strides(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether every reader of ``node``, and of views of it, takes a slice of a wider tensor."""
    for reader in node.users:
        row = OPS.of(reader, modules)
        if row is None or reader.op == "output":
            return False
        if row.views and not _takes_strides(reader, modules):
            return False
    return True


@torch.no_grad()
def _merge(gm: fx.GraphModule, nodes: list[fx.Node]) -> fx.Node:
    layers = [gm.get_submodule(str(n.target)) for n in nodes]
    sizes = [int(layer.out_features) for layer in layers]  # type: ignore[arg-type]
    wide = nn.utils.skip_init(nn.Linear, int(layers[0].in_features), sum(sizes), bias=layers[0].bias is not None)  # type: ignore[arg-type]
    wide.weight.copy_(torch.cat([layer.get_parameter("weight") for layer in layers]))
    if layers[0].bias is not None:
        wide.bias.copy_(torch.cat([layer.get_parameter("bias") for layer in layers]))
    path, taken = f"{nodes[0].target}_merged", {path for path, _ in gm.named_modules()}
    while path in taken:
        path += "_"
    gm.add_submodule(path, wide.eval())
    with gm.graph.inserting_before(nodes[0]):
        whole: fx.Node = gm.graph.call_module(path, nodes[0].args)
        parts = gm.graph.call_function(torch.split, (whole,), {"split_size_or_sections": sizes, "dim": -1})
        slices = [gm.graph.call_function(operator.getitem, (parts, i)) for i in range(len(nodes))]
    for new in (whole, parts, *slices):
        new.meta = dict(nodes[0].meta)
    for node, part in zip(nodes, slices, strict=True):
        node.replace_all_uses_with(part)
        gm.graph.erase_node(node)
    return whole
