"""fp16 instead of int8 for the layers next to the output: no layer after them dampens the error of rounding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import fx, nn

from ...backends.base.backend import Backend
from ...backends.base.dynamic_spec import weight_names
from .plan import LayerPlan, LayerRequest, refusal

LAST_SHARE = 0.02  # of all weights may be fp16


def raise_last_layers(gm: fx.GraphModule, plan: LayerPlan, backend: Backend) -> None:
    """Ask for fp16 for the int8 layers nearest to the output, as long as they hold at most 2 % of the weights."""
    layers = {path: gm.get_submodule(path) for path in plan.requests}
    sizes = {p: sum(m.get_parameter(n).numel() for n in weight_names(m)) for p, m in layers.items()}
    total = sum(m.get_parameter(n).numel() for m in gm.modules() for n in weight_names(m))
    budget = LAST_SHARE * total
    behind: set[str] = set()
    while True:
        front = set(_last_layers(gm, plan.requests, behind))
        size = sum(sizes[p] for p in front)
        if not front or size > budget or any(not _may_be_half(layers[p], plan.requests[p], backend) for p in front):
            return
        for path in front:
            plan.requests[path] = LayerRequest(torch.float16, plan.requests[path].config)
            share = f"{sizes[path] / total:.1%} of the weights"
            plan.reasons[path] = f"fp16, not int8: it is near the output, and has only {share}"
        behind |= front
        budget -= size


def _may_be_half(layer: nn.Module, request: LayerRequest, backend: Backend) -> bool:
    wanted = request.dtype == torch.int8 and not request.overridden
    return wanted and refusal(layer, torch.float16, backend) is None


def _last_layers(gm: fx.GraphModule, requests: Mapping[str, LayerRequest], behind: set[str]) -> Iterator[str]:
    """Layers with a path to the output on which there are no other layers than those in ``behind``."""
    front, seen = [n for n in gm.graph.nodes if n.op == "output"], set()
    while front:
        node = front.pop()
        if node in seen:
            continue
        seen.add(node)
        inside = [p for p in requests if node.op == "call_module" and f"{p}.".startswith(f"{node.target}.")]
        new = [p for p in inside if p not in behind]
        yield from new
        if not new:
            front += node.all_input_nodes
