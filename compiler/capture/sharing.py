"""Which values of a captured graph share memory."""

from __future__ import annotations

import enum
import operator
from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from ...backends.base.op import Call
from ...backends.ops.table import OPS

SIZES = ("shape", "ndim", "dtype", "device", "layout", "itemsize", "nbytes", "is_cuda", "requires_grad")
_TRANSPOSED = ("T", "mT", "H", "mH")
_MAY_COPY = ("reshape", "flatten", "contiguous", "ravel", "reshape_as", "to", "type", "type_as", "float")  # as spelled
_PARTS = ("chunk", "split", "unbind", "tensor_split", "hsplit", "vsplit", "dsplit", "split_with_sizes")
_VIEWS = frozenset((
    *_PARTS, *_MAY_COPY, "t", "adjoint", "movedim", "moveaxis", "swapdims", "view_as", "expand_as", "diagonal",
    "unfold", "as_strided", "view_as_real", "view_as_complex", "broadcast_to", "positive", "swapaxes", "getitem",
))  # fmt: skip


class Shares(enum.Enum):
    """Whether a value shares the memory of the input of its op."""

    NO = enum.auto()
    MAYBE = enum.auto()
    YES = enum.auto()


class Sharing:
    """Tells which values of a graph share memory. To be made before the graph is normalized: spellings differ.

    Attributes:
        numbers: values that are sizes or other numbers. Whoever walks the graph adds them.
    """

    def __init__(self, gm: fx.GraphModule, modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules
        calls = [n for n in gm.graph.nodes if n.op.startswith("call")]
        self._may_copy = frozenset(n for n in calls if _name(n, modules) in _MAY_COPY)
        self.numbers: set[fx.Node] = set()

    def of(self, node: fx.Node) -> Shares:
        """Whether ``node`` shares the memory of its first input."""
        if not node.op.startswith("call") or not node.all_input_nodes:
            return Shares.NO
        if node in self._may_copy:
            return Shares.MAYBE
        if _attribute(node) is not None:
            return Shares.NO if _attribute(node) in SIZES else Shares.YES
        row = OPS.of(node, self._modules)
        if row is not None and row.name == "getitem":
            return self._item(node)
        if row is None or not row.views:
            return Shares.YES if _name(node, self._modules) in _VIEWS else Shares.NO
        if row.noop is not None:
            module = self._modules[str(node.target)] if node.op == "call_module" else None
            return Shares.YES if row.noop(Call(node, module, {})) else Shares.NO
        return Shares.YES

    def _item(self, node: fx.Node) -> Shares:
        """Indexing gives a view, but by a list, mask or tensor a copy."""
        index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        kinds = [Shares.YES]
        for part in index:
            if isinstance(part, fx.Node) and part not in self.numbers:
                kinds.append(Shares.NO if part.op == "get_attr" else Shares.MAYBE)
            elif isinstance(part, bool) or not isinstance(part, fx.Node | int | slice | str | None | type(Ellipsis)):
                kinds.append(Shares.NO)
        return min(kinds, key=lambda kind: kind.value)

    def part(self, node: fx.Node) -> Any:
        """Which part of several ``node`` is, of what ``chunk`` or ``max`` return; None if it is no such part.

        Different parts of the same value share no memory.
        """
        name = _attribute(node)
        if name is not None:
            return None if name in _TRANSPOSED else name
        if node.target not in (operator.getitem, "getitem") or type(node.args[1]) is not int or node.args[1] < 0:
            return None
        whole = node.args[0]
        several = isinstance(whole, fx.Node) and whole.op != "call_module" and _name(whole, self._modules) in _PARTS
        return node.args[1] if several else None


def part_of(value: Any, name: str) -> Any:
    """An attribute that is a value, not a size: ``values`` of what ``x.max(1)`` returns."""
    return getattr(value, name)


def _attribute(node: fx.Node) -> str | None:
    return str(node.args[1]) if node.target in (getattr, part_of) else None


def _name(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    if node.op == "call_module":
        return type(modules[str(node.target)]).__name__.lower()
    return str(getattr(node.target, "__name__", node.target))
