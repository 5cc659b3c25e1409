"""The account of a dynamic quantization: one row per layer and per op of the graph, where there is one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx, nn

from ..backends.base import OpTable, Output
from ..backends.dynamic import DynamicLayer, weight_names
from .dynamic import Dynamic
from .report import FUSED, Report, Row, make_row, parameter_bytes

NO_WEIGHTS = "no weights: dynamic quantization is for layers that read more weights than inputs"
NO_MATRIX = "its weights are no matrix, and few"
PRECISION = {torch.int8: "int8 dynamic", torch.float16: "fp16"}


def dynamic_report(done: Dynamic, model: nn.Module, table: OpTable) -> Report:
    """Rows in the order of the graph, or of the modules."""
    rows = _graph_rows(done, table) if isinstance(done.tree, fx.GraphModule) else _tree_rows(done, table, "", done.tree)
    unique = set(done.tree.modules())
    layers = [m for m in unique if isinstance(m, DynamicLayer)]
    kept = [t for m in unique - set(layers) for t in (*m.parameters(recurse=False), *m.buffers(recurse=False))]
    compiled = sum(layer.weight_bytes for layer in layers) + parameter_bytes(set(kept))
    remark = f"layers swapped where they stand, not traced: {done.untraced}" if done.untraced else ""
    return Report(tuple(rows), parameter_bytes((*model.parameters(), *model.buffers())), compiled, remark)


def _graph_rows(done: Dynamic, table: OpTable) -> Iterator[Row]:
    assert isinstance(done.tree, fx.GraphModule) and done.work is not None
    for node in done.tree.graph.nodes:
        if node.op == "call_module":
            yield from _tree_rows(done, table, str(node.target), done.tree.get_submodule(str(node.target)), node)
            continue
        rule = table.of(node, {})
        # Arithmetic on sizes keeps Python's operators.
        if rule is None or node.target is not rule.canonical or rule.output is Output.META or rule.views:
            continue
        note = done.work.notes.get(node)
        yield make_row(node, rule.name, "fp32", "", "; ".join([NO_WEIGHTS, *([note] if note else [])]))


def _tree_rows(
    done: Dynamic, table: OpTable, path: str, module: nn.Module, node: fx.Node | None = None
) -> Iterator[Row]:
    """A row for ``module``, or one for each layer in it."""
    layer = module if isinstance(module, DynamicLayer) else None
    children = [] if layer else list(module.named_children())
    if not children or weight_names(module):
        yield _layer_row(done, table, path, module, node)
    for name, child in children:
        yield from _tree_rows(done, table, f"{path}.{name}" if path else name, child)


def _layer_row(done: Dynamic, table: OpTable, path: str, module: nn.Module, node: fx.Node | None) -> Row:
    before = done.floats.get(path, module)
    rule = table.find(type(before))
    size = parameter_bytes(before.parameters(recurse=False))
    op, precision, kernel, compiled = rule.name if rule else type(before).__name__, "fp32", "", size
    reason = done.plan.reasons.get(path) or (NO_MATRIX if size else NO_WEIGHTS)
    if isinstance(module, DynamicLayer):
        op += f"{FUSED}relu" if module.relu else ""
        precision, kernel, compiled = PRECISION[module.dtype], module.kernel, module.weight_bytes
        reason = done.plan.reasons.get(path, "")
    note = done.work.notes.get(node) if done.work is not None and node is not None else None
    reason = "; ".join(text for text in (reason, note) if text)
    if node is None:
        return Row(path or "(root)", op, precision, kernel, None, reason, None, size, compiled)
    return make_row(node, op, precision, kernel, reason, sizes=(size, compiled))
