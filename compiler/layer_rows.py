"""Rows of the report for layers that dynamic quantization replaced or left, one for each in a tree of modules."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx, nn

from ..backends.base import OpTable
from ..backends.dynamic import DynamicLayer, weight_names
from ..backends.units import FUSED
from ..passes.dynamic import LayerPlan
from .report import Row, make_row, parameter_bytes

NO_WEIGHTS = "no weights: dynamic quantization is for layers that read more weights than inputs"
NO_MATRIX = "its weights are no matrix, and few"
PRECISION = {torch.int8: "int8 dynamic", torch.float16: "fp16"}


def layer_rows(
    path: str, module: nn.Module, plan: LayerPlan, table: OpTable, node: fx.Node | None = None, note: str = ""
) -> Iterator[Row]:
    """A row for ``module``, or one for each layer in it; ``node`` calls it, and ``note`` is what passes say of that."""
    inner = {} if isinstance(module, DynamicLayer) else module._modules  # a shared one at each of its places
    children = [(name, child) for name, child in inner.items() if child is not None and name != "parametrizations"]
    if not children or weight_names(module) or path in plan.reasons:
        yield _row(path, module, plan, table, node, note)
    for name, child in children:
        yield from layer_rows(f"{path}.{name}" if path else name, child, plan, table)


def _row(path: str, module: nn.Module, plan: LayerPlan, table: OpTable, node: fx.Node | None, note: str) -> Row:
    before = plan.floats.get(path, module)
    rule = table.find(type(before))
    size = parameter_bytes(before.parameters(recurse=False))
    op, precision, kernel, compiled = rule.name if rule else type(before).__name__, "fp32", "", size
    reason = plan.reasons.get(path, "")
    if isinstance(module, DynamicLayer):
        op += f"{FUSED}relu" if module.relu else ""
        precision, kernel, compiled = PRECISION[module.dtype], module.kernel, module.weight_bytes
    else:
        reason = reason or (NO_MATRIX if size else NO_WEIGHTS)
    reason = "; ".join(text for text in (reason, note) if text)
    if node is None:
        return Row(path or "(root)", op, precision, kernel, None, reason, None, size, compiled)
    return make_row(node, op, precision, kernel, reason, sizes=(size, compiled))
