"""Rows of the report, made of nodes of a graph."""

from __future__ import annotations

from torch import fx

from ..core.messages import user_line
from ..core.overrides import module_path
from ..core.qparams import QParams
from .report import Precision, Row


def row_name(node: fx.Node) -> str:
    """The path of the module that ``node`` calls, or in whose forward() it is; then with the name of the node."""
    path = module_path(node)
    own_module = path.replace(".", "_") == node.name.lstrip("_")
    return f"{path}:{node.name}" if path and not own_module and node.op != "call_module" else path or node.name


def make_row(
    node: fx.Node,
    op: str,
    precision: Precision,
    kernel: str,
    reason: str,
    qparams: QParams | None = None,
    sizes: tuple[int, int] = (0, 0),
) -> Row:
    """A row for ``node``; ``sizes`` are bytes before and after."""
    return Row(row_name(node), op, precision, kernel, qparams, reason, user_line(node.stack_trace), *sizes)
