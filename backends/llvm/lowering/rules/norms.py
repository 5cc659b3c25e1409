"""Layer normalization and softmax, over the last axis."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor, fx

from ..builder import Builder
from ..lazy import read_form
from ..row_steps import LARGEST, RowStep
from ..steps import Step
from ..terms import Form, Total
from ..values import Value
from .rule import Rule


def layer_norm(builder: Builder, node: fx.Node) -> bool:
    """(x - mean) / sqrt(variance + eps) * weight + bias."""
    norm: Any = builder.modules[str(node.target)]
    if len(norm.normalized_shape) != 1:
        return False
    weight: Tensor | float = 1.0 if norm.weight is None else norm.weight.detach().double()
    bias: Tensor | float = 0.0 if norm.bias is None else norm.bias.detach().double()
    bound = math.sqrt(norm.normalized_shape[0])  # of a normalized value
    form = Form.of(Total(), weight, bias)
    form = Form(
        form.terms, form.constant, bound * float(form.terms[0][1].abs().max()) + float(form.constant.abs().max())
    )
    return _rows(builder, node, "norm", form, norm.eps)


def softmax(builder: Builder, node: fx.Node) -> bool:
    """exp(x) / sum of exp."""
    axes = len(builder.infos[node].shape)
    dim = builder.param(node, "dim")
    if builder.param(node, "dtype") is not None or dim is None or dim % axes != axes - 1:
        return False
    return _rows(builder, node, "softmax", Form.of(Total(), bound=1.0), 0.0)


def _rows(builder: Builder, node: fx.Node, kind: Literal["norm", "softmax"], form: Form, epsilon: float) -> bool:
    shape = builder.infos[node].shape
    argument: Any = node.args[0]
    lazy = builder.read(argument)
    if not shape or shape[-1] > LARGEST:
        return False
    if lazy.draft is None and lazy.order[-1] == len(shape) - 1:
        source, order = lazy.clamped, lazy.order
    else:
        value = builder.row_major(builder.float_value(argument), node)
        source, order = read_form(value), value.order()

    def draft(output: Form, target: Value) -> list[Step]:
        return [RowStep(node, output, target, operation=kind, source=source, size=shape[-1], epsilon=epsilon)]

    builder.set(node, form, order=order, draft=draft)
    return True


RULES: dict[str, Rule] = {"layer_norm": layer_norm, "softmax": softmax}
