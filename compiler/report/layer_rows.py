"""Rows for the layers of a module tree that dynamic quantization replaced or left."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx, nn

from ...backends.base.dynamic_layer import DynamicLayer
from ...backends.base.dynamic_spec import weight_names
from ...backends.ops.table import OPS
from ...backends.ops.units import FUSED
from ...passes.dynamic.plan import LayerPlan
from ..core.tensors import total_bytes
from .report import Precision, Row
from .rows import make_row

NO_WEIGHTS = "no weights: dynamic quantization is for layers with large weights"
NO_MATRIX = "it has no weight matrix"
PRECISION: dict[torch.dtype, Precision] = {torch.int8: "int8 dynamic", torch.float16: "fp16"}


def layer_rows(
    path: str, module: nn.Module, plan: LayerPlan, node: fx.Node | None = None, note: str = ""
) -> Iterator[Row]:
    """A row for ``module``, or one for each layer in it.

    Args:
        path: of the module.
        plan: what was asked for, and the reasons.
        node: the call of the module, if it is in a graph.
        note: what passes say of it.
    """
    inner = {} if isinstance(module, DynamicLayer) else module._modules  # a shared module at each of its paths
    children = [(name, child) for name, child in inner.items() if child is not None and name != "parametrizations"]
    if not children or weight_names(module) or path in plan.reasons:
        yield _layer_row(path, module, plan, node, note)
    for name, child in children:
        yield from layer_rows(f"{path}.{name}" if path else name, child, plan)


def _layer_row(path: str, module: nn.Module, plan: LayerPlan, node: fx.Node | None, note: str) -> Row:
    before = plan.floats.get(path, module)
    row = OPS.find(type(before))
    size = total_bytes(before.parameters(recurse=False))
    op, precision, kernel, compiled = row.name if row else type(before).__name__, "fp32", "", size
    reason = plan.reasons.get(path, "")
    if isinstance(module, DynamicLayer):
        op += f"{FUSED}relu" if module.relu else ""
        precision, kernel, compiled = PRECISION[module.dtype], module.kernel, module.weight_bytes
    else:
        reason = reason or (NO_MATRIX if size else NO_WEIGHTS)
    reason = "; ".join(text for text in (reason, note) if text)
    if node is None:
        return Row(path or "(root)", op, precision, kernel, None, reason, None, size, compiled)  # type: ignore[arg-type]
    return make_row(node, op, precision, kernel, reason, sizes=(size, compiled))  # type: ignore[arg-type]
