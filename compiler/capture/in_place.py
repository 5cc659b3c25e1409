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

_OPERATORS = (operator.iadd, operator.imul, operator.isub, operator.itruediv)
_SAME_ORDER = ("reshape", "flatten", "unflatten", "squeeze", "unsqueeze")  # views with the same values in a row
_MAY_COPY = ("reshape", "flatten", "contiguous")  # as spelled in forward()


def is_in_place(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether the call of ``node`` changes its input; ``module`` is what it calls, if any."""
    if module is not None:
        return bool(getattr(module, "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    name = getattr(node.target, "__name__", "")
    return node.target in _OPERATORS or bool(node.kwargs.get("inplace")) or name.endswith("_")


def assigned(base: Tensor, index: Any, value: Tensor) -> Tensor:
    """A copy of ``base`` after ``base[index] = value``."""
    result = base.clone()
    result[index] = value
    return result


def may_copy(gm: fx.GraphModule, modules: Mapping[str, nn.Module]) -> frozenset[fx.Node]:
    """Calls that give a view of their input or a copy, as its strides allow; of a graph that is not normalized yet."""

    def name(node: fx.Node) -> str:
        if node.op == "call_module":
            return type(modules[str(node.target)]).__name__.lower()
        return str(getattr(node.target, "__name__", node.target))

    return frozenset(n for n in gm.graph.nodes if n.op.startswith("call") and name(n) in _MAY_COPY)


def redirect_later_uses(node: fx.Node, modules: Mapping[str, nn.Module], uncertain: frozenset[fx.Node]) -> None:
    """Make later readers of the memory that an in-place op changes read its result.

    Args:
        modules: of the graph by path.
        uncertain: nodes that may or may not share the memory of their input, see :func:`may_copy`.

    Raises:
        CaptureError: the memory is read later under a name for which this is not possible.
    """
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return
    later, reader = set[fx.Node](), node.next
    while reader.op != "root":
        later.add(reader)
        reader = reader.next
    memory = _Memory(node, source, modules, uncertain)
    read = [alias for alias in memory.aliases if alias is not node and not later.isdisjoint(alias.users)]
    for alias in (source, *read):
        users = [user for user in alias.users if user in later]
        if users:
            value = memory.value_of(alias)
            for user in users:
                user.replace_input_with(alias, value)


class _Memory:
    """The names of the memory that an in-place op changes, and their values after it."""

    def __init__(
        self, changed: fx.Node, source: fx.Node, modules: Mapping[str, nn.Module], uncertain: frozenset[fx.Node]
    ) -> None:
        self.changed, self.modules, self.uncertain = changed, modules, uncertain
        self.now = {source: changed}
        self.end = changed  # new nodes go behind it
        self.base = source
        while self._is_view(self.base):
            self.base = self.base.all_input_nodes[0]
        found, front = {self.base: None}, [self.base]
        while front:
            views = [u for u in front.pop().users if self._is_view(u) and u is not changed]
            found.update(dict.fromkeys(views))
            front += views
        self.aliases = [alias for alias in found if alias is not source]
        self.source = source

    def _is_view(self, node: fx.Node) -> bool:
        row = OPS.of(node, self.modules)
        return row is not None and row.views

    def value_of(self, alias: fx.Node) -> fx.Node:
        """The value of ``alias`` after the change."""
        if alias in self.now:
            return self.now[alias]
        if self.base not in self.now:
            self._rebuild_base(alias)
        if alias not in self.now:
            self._check_certain(alias, alias)
            value = self.value_of(alias.all_input_nodes[0])
            parent = alias.all_input_nodes[0]
            with alias.graph.inserting_after(self.end):
                self.end = self.now[alias] = alias.graph.node_copy(alias, lambda n: value if n is parent else n)
        return self.now[alias]

    def _rebuild_base(self, wanted: fx.Node) -> None:
        view = self.source
        while view is not self.base:
            self._check_certain(view, wanted)
            parent = view.all_input_nodes[0]
            made = self._with_part(parent, view, self.now[view])
            if made is None:
                raise self._refusal(wanted)
            self.now[parent] = made
            view = parent

    def _with_part(self, parent: fx.Node, view: fx.Node, value: fx.Node) -> fx.Node | None:
        """``parent`` whose ``view`` is ``value``; None if that is not known."""
        row = OPS.of(view, self.modules)
        assert row is not None
        if row.noop is not None:
            return value
        options: dict[str, Any] = dict(view.kwargs)
        if row.name in _SAME_ORDER:
            return self._call(torch.reshape, (value,), {"shape": self._call("size", (parent,), {})})
        if row.name == "transpose":
            return self._call(torch.transpose, (value,), options)
        if row.name == "getitem" and isinstance(view.args[0], fx.Node) and not self._is_multiple(view.args[0]):
            return self._call(assigned, (parent, view.args[1], value), {})
        if row.name == "select":
            return self._call(torch.select_scatter, (parent, value), options)
        if row.name == "narrow" and all(isinstance(options.get(k), int) for k in ("start", "length")):
            ends = {"start": options["start"], "end": options["start"] + options["length"]}
            return self._call(torch.slice_scatter, (parent, value), {"dim": options.get("dim", 0), **ends})
        return None

    def _is_multiple(self, node: fx.Node) -> bool:
        row = OPS.of(node, self.modules)
        return row is not None and row.multiple

    def _call(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        graph = self.changed.graph
        with graph.inserting_after(self.end):
            make = graph.call_method if isinstance(target, str) else graph.call_function
            self.end = make(target, args, kwargs)
        return self.end

    def _check_certain(self, view: fx.Node, wanted: fx.Node) -> None:
        if view in self.uncertain:
            raise self._refusal(wanted)

    def _refusal(self, alias: fx.Node) -> CaptureError:
        return CaptureError(
            f"The in-place op {where(self.changed)} changes memory that '{alias.name}' shares, which is read later. "
            "Write it out of place (x = x.relu() instead of x.relu_())."
        )
