"""Reading the quantize and dequantize nodes of a frozen graph."""

from __future__ import annotations

from torch import fx

from ...compiler.core.qparams import QParams
from ...compiler.numerics.quantize import dequantize, quantize


def is_quantize(node: object) -> bool:
    """Whether ``node`` is a ``quantize``."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target is quantize


def is_dequantize(node: object) -> bool:
    """Whether ``node`` is a ``dequantize``."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target is dequantize


def quantize_behind(value: fx.Node) -> fx.Node | None:
    """The ``quantize`` among the readers of a value."""
    return next((u for u in value.users if is_quantize(u)), None)


def literal_qparams(node: fx.Node) -> QParams:
    """The parameters of a ``quantize``."""
    return QParams(*node.args[1:5])  # type: ignore[arg-type]


def pair_qparams(node: fx.Node) -> QParams | None:
    """The parameters of a ``quantize``, or of the ``quantize`` of a ``dequantize``; None for any other node."""
    if is_dequantize(node):
        node = node.args[0]  # type: ignore[assignment]
    return literal_qparams(node) if is_quantize(node) else None
