"""In-place ops: later readers of the input must read the output."""

from __future__ import annotations

import operator

from torch import fx, nn

from ...backends.ops.table import OPS
from ..core.errors import CaptureError
from ..core.messages import where

_OPERATORS = (operator.iadd, operator.imul, operator.isub, operator.itruediv)


def is_in_place(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether the call of ``node`` changes its input; ``module`` is what it calls, if any."""
    if module is not None:
        return bool(getattr(module, "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    name = getattr(node.target, "__name__", "")
    return node.target in _OPERATORS or bool(node.kwargs.get("inplace")) or name.endswith("_")


def redirect_later_uses(node: fx.Node, modules: dict[str, nn.Module]) -> None:
    """Make later readers of the input of an in-place op read its output.

    Raises:
        CaptureError: the memory is also read under another name.
    """
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return
    later, reader = set(), node.next
    while reader.op != "root":
        later.add(reader)
        reader = reader.next
    for alias in _aliases(source, modules) - {node}:
        if any(user in later for user in alias.users):
            raise CaptureError(
                f"The in-place op {where(node)} changes memory that '{alias.name}' shares, which is read later. "
                "Write it out of place (x = x.relu() instead of x.relu_())."
            )
    for user in list(source.users):
        if user in later:
            user.replace_input_with(source, node)


def _aliases(source: fx.Node, modules: dict[str, nn.Module]) -> set[fx.Node]:
    """Other values that may share the memory of ``source``: the tensor that it is a view of, and views of that."""

    def is_view(node: fx.Node) -> bool:
        row = OPS.of(node, modules)
        return row is not None and row.views

    base = source
    while is_view(base):
        base = base.all_input_nodes[0]
    found, front = {base}, [base]
    while front:
        views = [u for u in front.pop().users if is_view(u)]
        found.update(views)
        front += views
    return found - {source}
