"""In-place ops become pure ones: what reads the changed memory later, under any name, reads the new value.

A value and its views share memory. After an op has changed one of them, the value that it is a view of is rebuilt from
the result, and the other views are taken again from that.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...backends.ops.table import OPS
from ..core.errors import CaptureError
from ..core.messages import where
from .sharing import Shares, Sharing

PURE = {  # of in-place operators
    operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
    operator.itruediv: operator.truediv, operator.ifloordiv: operator.floordiv, operator.imod: operator.mod,
    operator.ipow: operator.pow, operator.iand: operator.and_, operator.ior: operator.or_, operator.ixor: operator.xor,
    operator.ilshift: operator.lshift, operator.irshift: operator.rshift,
}  # fmt: skip
_SAME_ORDER = ("reshape", "flatten", "unflatten", "squeeze", "unsqueeze")  # views with the same values in a row


def is_in_place(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether the call of ``node`` changes its input; ``module`` is what it calls, if any."""
    if node.kwargs.get("out") is not None:
        return True
    if module is not None:
        return bool(getattr(module, "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    if isinstance(node.target, torch._ops.OpOverload):
        return any(a.alias_info is not None and a.alias_info.is_write for a in node.target._schema.arguments)
    name = getattr(node.target, "__name__", "")
    return node.target in PURE or bool(node.kwargs.get("inplace")) or name.endswith("_")


def assigned(base: Any, index: Any, value: Tensor) -> Any:
    """A copy of ``base`` after ``base[index] = value``; ``base`` may also be a tuple of tensors."""
    if isinstance(base, tuple):
        return type(base)([value if i == range(len(base))[index] else item for i, item in enumerate(base)])
    result = base.clone()
    result[index] = value
    return result


def redirect_later_uses(node: fx.Node, modules: Mapping[str, nn.Module], sharing: Sharing) -> None:
    """Make later readers of the memory that an in-place op changes read its result.

    Args:
        modules: of the graph by path.
        sharing: of the values of the graph.

    Raises:
        CaptureError: the memory is read later under a name for which this is not possible.
    """
    source = node.kwargs.get("out") or (node.args[0] if node.args else None)
    if not isinstance(source, fx.Node):
        return
    later, reader = set[fx.Node](), node.next
    while reader.op != "root":
        later.add(reader)
        reader = reader.next
    memory = _Memory(node, source, later, modules, sharing)
    read = [alias for alias in memory.aliases if alias is not node and not later.isdisjoint(alias.users)]
    for alias in (*read, source, node):
        users = [user for user in alias.users if user in later and not memory.is_apart(user)]
        if users:
            value = memory.value_of(alias)
            for user in users:
                user.replace_input_with(alias, value)


class _Memory:
    """The names of the memory that an in-place op changes, and their values after it."""

    def __init__(
        self,
        changed: fx.Node,
        source: fx.Node,
        later: set[fx.Node],
        modules: Mapping[str, nn.Module],
        sharing: Sharing,
    ) -> None:
        self.changed, self.modules, self.sharing = changed, modules, sharing
        self.now = {source: changed}
        self.end = changed  # new nodes go behind it
        self.base, self.parts = source, dict[fx.Node, Any]()  # parts: what is changed of each value
        while self._is_view(self.base):
            whole = self.base.all_input_nodes[0]
            self.parts[whole] = sharing.part(self.base)
            self.base = whole
        found, front = {self.base: None}, [self.base]
        while front:
            users = [u for u in front.pop().users if u is not changed and u not in later]
            views = [u for u in users if self._is_view(u) and not self.is_apart(u)]
            found.update(dict.fromkeys(views))
            front += views
        self.aliases = [alias for alias in found if alias is not source]
        self.source = source

    def _is_view(self, node: fx.Node) -> bool:
        return self.sharing.of(node) is not Shares.NO

    def is_apart(self, node: fx.Node) -> bool:
        """Whether ``node`` is another part of several than what is changed."""
        part, changed = self.sharing.part(node), None
        if part is not None:
            changed = self.parts.get(node.all_input_nodes[0])
        return changed is not None and part != changed

    def value_of(self, alias: fx.Node) -> fx.Node:
        """The value of ``alias`` after the change."""
        if alias is self.changed:
            alias = self.source
        if alias in self.now:
            return self.now[alias]
        if self.base not in self.now:
            self._rebuild_base(alias)
        if alias not in self.now:
            self._check_certain(alias, alias)
            self._take_again(alias)
        return self.now[alias]

    def _take_again(self, view: fx.Node) -> None:
        parent = view.all_input_nodes[0]
        value = self.value_of(parent)
        with view.graph.inserting_after(self.end):
            self.end = self.now[view] = view.graph.node_copy(view, lambda n: value if n is parent else n)

    def _rebuild_base(self, wanted: fx.Node) -> None:
        view, chain = self.source, list[fx.Node]()
        while view is not self.base:
            self._check_certain(view, wanted)
            parent = view.all_input_nodes[0]
            made = self._with_part(parent, view, self.now[view])
            if made is None:
                raise self._refusal(wanted)
            self.now[parent] = made
            chain.append(view)
            view = parent
        for view in reversed(chain):  # later changes of these must be seen as changes of the base
            self._take_again(view)

    def _with_part(self, parent: fx.Node, view: fx.Node, value: fx.Node) -> fx.Node | None:
        """``parent`` whose ``view`` is ``value``; None if that is not known."""
        row = OPS.of(view, self.modules)
        if row is None:
            return None
        if row.noop is not None:
            return value
        options: dict[str, Any] = dict(view.kwargs)
        if row.name in _SAME_ORDER:
            return self._call(torch.reshape, (value,), {"shape": self._call("size", (parent,), {})})
        if row.name == "transpose":
            return self._call(torch.transpose, (value,), options)
        if row.name == "getitem" and self.sharing.part(view) is None:
            return self._call(assigned, (parent, view.args[1], value), {})
        if row.name == "select":
            return self._call(torch.select_scatter, (parent, value), options)
        if row.name == "narrow" and all(isinstance(options.get(k), int) for k in ("start", "length")):
            end = options["start"] + options["length"]
            ends = {"start": options["start"], "end": end or None}  # a negative start may reach the end
            return self._call(torch.slice_scatter, (parent, value), {"dim": options.get("dim", 0), **ends})
        return None

    def _call(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        graph = self.changed.graph
        with graph.inserting_after(self.end):
            make = graph.call_method if isinstance(target, str) else graph.call_function
            self.end = make(target, args, kwargs)
        return self.end

    def _check_certain(self, view: fx.Node, wanted: fx.Node) -> None:
        if self.sharing.of(view) is Shares.MAYBE:
            raise self._refusal(wanted)

    def _refusal(self, alias: fx.Node) -> CaptureError:
        return CaptureError(
            f"The in-place op {where(self.changed)} changes memory that '{alias.name}' shares, which is read later. "
            "Write it out of place (x = x.relu() instead of x.relu_())."
        )
