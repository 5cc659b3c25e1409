"""The account of a dynamic quantization."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx, nn

from ..backends.base import OpTable, Output
from ..backends.dynamic import module_bytes
from .dynamic import Dynamic
from .layer_rows import NO_WEIGHTS, layer_rows
from .report import Report, Row, make_row


def dynamic_report(done: Dynamic, model: nn.Module, table: OpTable) -> Report:
    """A row per layer, and per op of the graph where there is one."""
    if isinstance(done.tree, fx.GraphModule):
        rows = list(_graph_rows(done.tree, done, table))
    else:
        rows = list(layer_rows("", done.tree, done.plan, table))
    remark = f"not traced, layers swapped where they stand: {done.untraced}" if done.untraced else ""
    return Report(tuple(rows), module_bytes(model), module_bytes(done.tree), remark)


def _graph_rows(gm: fx.GraphModule, done: Dynamic, table: OpTable) -> Iterator[Row]:
    notes = done.work.notes if done.work is not None else {}
    for node in gm.graph.nodes:
        note = notes.get(node, "")
        if node.op == "call_module":
            path = str(node.target)
            yield from layer_rows(path, gm.get_submodule(path), done.plan, table, node, note)
            continue
        rule = table.of(node, {})
        # Arithmetic on sizes keeps Python's operators.
        if rule is not None and node.target is rule.canonical and rule.output is not Output.META and not rule.views:
            yield make_row(node, rule.name, "fp32", "", "; ".join([NO_WEIGHTS, *([note] if note else [])]))
