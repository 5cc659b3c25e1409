"""The report of a dynamic quantization."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import fx, nn

from ...backends.base.dynamic_layer import DynamicLayer, module_bytes
from ...backends.base.dynamic_spec import weight_names
from ...backends.base.op import Output
from ...backends.ops.table import OPS
from ...passes.dynamic.plan import LayerPlan
from .layer_rows import NO_WEIGHTS, layer_rows
from .report import Report, Row
from .rows import make_row


@dataclass(frozen=True)
class GraphPart:
    """The part of a model that was traced.

    Attributes:
        module: the graph over the compiled layers.
        plan: what was done to its layers.
        notes: what passes say, by node.
    """

    module: fx.GraphModule
    plan: LayerPlan
    notes: Mapping[fx.Node, str]


def dynamic_report(
    model: nn.Module, tree: nn.Module, tree_plan: LayerPlan, traced: GraphPart | None, untraced: str
) -> Report:
    """A row per layer, and per op of the graph if there is one.

    Args:
        model: the float model.
        tree: a copy of it with its layers replaced.
        tree_plan: what was done to the layers that the graph does not call.
        traced: the graph; None if the model was not traced.
        untraced: why it was not.
    """
    if traced is None:
        rows, runs = list(layer_rows("", tree, tree_plan)), tree
    else:
        rows = [*_graph_rows(traced), *_other_rows(tree, tree_plan, traced)]
        runs = nn.ModuleList([tree, traced.module])
    remark = f"not traced, layers replaced in the model itself: {untraced}" if untraced else ""
    return Report(tuple(rows), module_bytes(model), module_bytes(runs), remark)


def _other_rows(tree: nn.Module, plan: LayerPlan, traced: GraphPart) -> Iterator[Row]:
    """Layers of the model that its graph does not call."""
    called = {f"{n.target}." for n in traced.module.graph.nodes if n.op == "call_module"}
    for path in plan.requests | plan.reasons:
        if any(f"{path}.".startswith(c) for c in called) or path in traced.plan.floats or not path:
            continue
        module = tree.get_submodule(path)
        if isinstance(module, DynamicLayer) or weight_names(module):
            yield from layer_rows(path, module, plan, note="the traced graph does not call it")


def _graph_rows(traced: GraphPart) -> Iterator[Row]:
    for node in traced.module.graph.nodes:
        note = traced.notes.get(node, "")
        if node.op == "call_module":
            path = str(node.target)
            yield from layer_rows(path, traced.module.get_submodule(path), traced.plan, node, note)
            continue
        row = OPS.of(node, {})
        # Arithmetic on sizes keeps the operators of Python: it is not in canonical spelling.
        if row is not None and node.target is row.canonical and row.output is not Output.META and not row.views:
            yield make_row(node, row.name, "fp32", "", "; ".join([NO_WEIGHTS, *([note] if note else [])]))
