"""Sums, products, joins."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import fx

from ...base.op import Call, OpRow
from .kinds import observed


def _refuse_binary(call: Call) -> str | None:
    """Refuse operands that are sizes, and ``alpha``."""
    if call.param("alpha", 1) != 1:
        return "it has a factor alpha"
    sizes = [a for a in call.node.args if isinstance(a, fx.Node) and a not in call.values]
    return f"its operand '{sizes[0].name}' is a size" if sizes else None


ROWS = [
    observed(
        "add", torch.add, (operator.add, operator.iadd, "add", "add_", "__add__"), inputs=2,
        scale_equivariant=True, refuse=_refuse_binary,
    ),
    observed(
        "mul", torch.mul, (operator.mul, operator.imul, "mul", "mul_", torch.multiply), inputs=2,
        product=True, refuse=_refuse_binary,
    ),
    OpRow("sub", torch.sub, (operator.sub, operator.isub, "sub", "sub_"), inputs=2, scale_equivariant=True),
    OpRow("div", torch.div, (operator.truediv, operator.itruediv, "div", "div_", torch.true_divide), inputs=2),
    OpRow("matmul", torch.matmul, (operator.matmul, "matmul", torch.bmm, "bmm"), inputs=2),
    OpRow("scaled_dot_product_attention", F.scaled_dot_product_attention, (),
          "attn_mask dropout_p is_causal scale enable_gqa", inputs=3),
    OpRow("cat", torch.cat, (torch.concat, torch.concatenate), "dim", inputs=0, joins=True, scale_equivariant=True),
    OpRow("stack", torch.stack, (), "dim", inputs=0, joins=True, scale_equivariant=True),
]  # fmt: skip
