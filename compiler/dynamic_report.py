"""The account of a dynamic quantization."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ..backends.base import OpTable, Output
from ..backends.dynamic import DynamicLayer, module_bytes, weight_names
from ..passes.dynamic import LayerPlan
from .dynamic import Dynamic
from .layer_rows import NO_WEIGHTS, layer_rows
from .report import Report, Row, make_row
from .work import Work


def dynamic_report(done: Dynamic, model: nn.Module, table: OpTable) -> Report:
    """A row per layer, and per op of the graph where there is one."""
    if done.work is None:
        rows = list(layer_rows("", done.tree, done.rest, table))
        runs = done.tree
    else:
        rows = [*_graph_rows(done.work, done.plan, table), *_other_rows(done, done.work, table)]
        runs = nn.ModuleList([done.tree, done.work.gm])
    remark = f"not traced, layers swapped where they stand: {done.untraced}" if done.untraced else ""
    return Report(tuple(rows), module_bytes(model), module_bytes(runs), remark)


def _other_rows(done: Dynamic, work: Work, table: OpTable) -> Iterator[Row]:
    """Layers of the model that its graph does not call."""
    called = {f"{n.target}." for n in work.gm.graph.nodes if n.op == "call_module"}
    for path in done.rest.wishes | done.rest.reasons:
        if any(f"{path}.".startswith(c) for c in called) or path in done.plan.floats or not path:
            continue
        module = done.tree.get_submodule(path)
        if isinstance(module, DynamicLayer) or weight_names(module):
            note = "not on the way that was traced"
            yield from layer_rows(path, module, done.rest, table, note=note)


def _graph_rows(work: Work, plan: LayerPlan, table: OpTable) -> Iterator[Row]:
    for node in work.gm.graph.nodes:
        note = work.notes.get(node, "")
        if node.op == "call_module":
            path = str(node.target)
            yield from layer_rows(path, work.gm.get_submodule(path), plan, table, node, note)
            continue
        rule = table.of(node, {})
        # Arithmetic on sizes keeps Python's operators.
        if rule is not None and node.target is rule.canonical and rule.output is not Output.META and not rule.views:
            yield make_row(node, rule.name, "fp32", "", "; ".join([NO_WEIGHTS, *([note] if note else [])]))
