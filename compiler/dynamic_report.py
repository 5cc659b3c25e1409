"""The account of a dynamic quantization."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ..backends.base import OpTable, Output
from ..backends.dynamic import module_bytes
from ..passes.dynamic import LayerPlan
from .dynamic import Dynamic
from .layer_rows import NO_WEIGHTS, layer_rows
from .pipeline import Work
from .report import Report, Row, make_row


def dynamic_report(done: Dynamic, model: nn.Module, table: OpTable) -> Report:
    """A row per layer, and per op of the graph where there is one."""
    if done.work is not None:
        rows = list(_graph_rows(done.work, done.plan, table))
    else:
        rows = list(layer_rows("", done.tree, done.plan, table))
    remark = f"not traced, layers swapped where they stand: {done.untraced}" if done.untraced else ""
    return Report(
        tuple(rows), module_bytes(model), module_bytes(done.tree if done.work is None else done.work.gm), remark
    )


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
