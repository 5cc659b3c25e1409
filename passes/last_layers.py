"""fp16 in place of int8 for the layers next to the output, where no layer behind dampens the error of rounding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import fx, nn

from ..backends.base import OpTable
from ..backends.dynamic import weight_names
from .dynamic import LayerPlan, Wish, refusal

LAST_SHARE = 0.02  # of all weights that may be fp16


def raise_last(gm: fx.GraphModule, plan: LayerPlan, table: OpTable) -> None:
    """fp16 for the int8 layers nearest to the output, while they hold next to none of the weights."""
    layers = {path: gm.get_submodule(path) for path in plan.wishes}
    sizes = {p: sum(m.get_parameter(n).numel() for n in weight_names(m)) for p, m in layers.items()}
    total = sum(m.get_parameter(n).numel() for m in gm.modules() for n in weight_names(m))
    budget = LAST_SHARE * total
    behind: set[str] = set()
    while True:
        front = set(_last_layers(gm, plan.wishes, behind))
        size = sum(sizes[p] for p in front)
        if not front or size > budget or any(not _may_be_half(layers[p], plan.wishes[p], table) for p in front):
            return
        for path in front:
            plan.wishes[path] = Wish(torch.float16, plan.wishes[path].config)
            share = f"{sizes[path] / total:.1%} of the weights"
            plan.reasons[path] = f"fp16, not int8: near the output, where nothing dampens its error, with {share}"
        behind |= front
        budget -= size


def _may_be_half(layer: nn.Module, wish: Wish, table: OpTable) -> bool:
    wanted = wish.dtype == torch.int8 and not wish.overridden
    return wanted and refusal(table.find(type(layer)), layer, torch.float16, table) is None


def _last_layers(gm: fx.GraphModule, wishes: Mapping[str, Wish], behind: set[str]) -> Iterator[str]:
    """Layers from which a way leads to the output that meets none but those of ``behind``."""
    front, seen = [n for n in gm.graph.nodes if n.op == "output"], set()
    while front:
        node = front.pop()
        if node in seen:
            continue
        seen.add(node)
        inside = [p for p in wishes if node.op == "call_module" and f"{p}.".startswith(f"{node.target}.")]
        new = [p for p in inside if p not in behind]
        yield from new
        if not new:
            front += node.all_input_nodes
