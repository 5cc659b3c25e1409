"""Place observers after int8 values, QuantStubs where fp32 enters an int8 region, DeQuantStubs where it leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn

from ...backends.base.op import Output
from ...backends.ops.stubs import STUBS
from ...backends.ops.table import OPS
from ...backends.ops.units import Unit
from ...compiler.numerics.observer import Observer
from ...compiler.numerics.observers import OBSERVER_CLASSES, FixedObserver
from ...compiler.numerics.stubs import DeQuantStub, QuantStub, observer_of
from ..analysis.assignment import Assignment, reads_size
from ..base import PassResult, finish

MakeObserver = Callable[[Unit | None, str, Assignment], Observer]


def make_observer(unit: Unit | None, label: str, assignment: Assignment) -> Observer:
    """The observer for the output of ``unit``, or for an fp32 value (None), as the configuration says."""
    if unit is not None and unit.row.output is Output.FIXED:
        assert unit.row.fixed is not None
        return FixedObserver(label, unit.row.fixed)
    config = assignment.config_of(unit) if unit else assignment.config.default
    return OBSERVER_CLASSES[config.observer](label, config.activation_symmetric)


class PlaceObservers:
    """Exact: the graph still computes in fp32. Removes the marks of the user's own stubs.

    Args:
        assignment: which ops are int8.
        make: makes the observer for a value.
    """

    name = "place"
    exact = True

    def __init__(self, assignment: Assignment, make: MakeObserver = make_observer) -> None:
        self.assignment, self.make = assignment, make

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        assignment, count = self.assignment, 0
        owner = {n: u for u in assignment.matched.units for n in u.nodes}
        units = [u for u in assignment.int8_units if u.row.output is not Output.WEIGHT_ONLY]
        int8_roots = {u.root for u in units}
        reads_int8 = {(n, u.root) for u in units for n in u.inputs}
        done = _observed(gm)
        for value in [n for n in gm.graph.nodes if n not in done]:
            unit = owner.get(value)
            if unit is not None and unit.root in int8_roots:
                if value is not unit.output or unit.row.multiple:
                    continue
            else:
                unit = None
            quantized = [u for u in value.users if (value, u) in reads_int8]
            others = [u for u in value.users if u not in quantized and not reads_size(u, owner, assignment.values)]
            if unit is None and quantized:
                stub = QuantStub(self.make(None, value.name, assignment))
                _insert(gm, value, f"{value.name}_quant", stub, quantized)
                count += 1
            elif unit is not None and (quantized or not assignment.binding(unit).float_output):
                count += self._place_output(gm, value, unit, others)
        for node in list(gm.graph.nodes):
            if node.op == "call_function" and node.target in STUBS.values():
                node.replace_all_uses_with(node.args[0])
                gm.graph.erase_node(node)
        finish(gm)
        return PassResult(count)

    def _place_output(self, gm: fx.GraphModule, value: fx.Node, unit: Unit, others: list[fx.Node]) -> int:
        count, source = 0, value
        if unit.row.output is not Output.SHARED:
            observer = self.make(unit, value.name, self.assignment)
            observer.behind = self._pool_behind(value)
            source = _insert(gm, value, f"{value.name}_observer", observer, list(value.users))
            count += 1
        if others:
            _insert(gm, source, f"{value.name}_dequant", DeQuantStub(), others)
            count += 1
        return count

    def _pool_behind(self, value: fx.Node) -> MaxPool | None:
        """The max pool that is all that reads ``value``. It gives the same before and after rounding."""
        (reader, *others) = value.users
        row = OPS.of(reader, {}) if reader.op == "call_function" else None
        if others or row is None or not row.name.startswith("max_pool") or len(reader.all_input_nodes) > 1:
            return None
        if reader.kwargs.get("return_indices"):
            return None
        return MaxPool(row.name, reader.args[1:], dict(reader.kwargs))


@dataclass(frozen=True)
class MaxPool:
    """A call of a function of ``torch.nn.functional``, which itself cannot be pickled."""

    name: str
    args: tuple[Any, ...]
    options: Mapping[str, Any]

    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor = getattr(F, self.name)(x, *self.args, **self.options)
        return result


def _observed(gm: fx.GraphModule) -> set[fx.Node]:
    """Values with an observer or a stub after them, and those modules themselves."""
    found: set[fx.Node] = set()
    for node in gm.graph.nodes:
        module = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
        if observer_of(module) is not None or isinstance(module, DeQuantStub):
            found |= {node, node.args[0]}
    return found


def _insert(gm: fx.GraphModule, value: fx.Node, name: str, module: nn.Module, readers: list[fx.Node]) -> fx.Node:
    gm.add_submodule(name, module)
    with gm.graph.inserting_after(value):
        node: fx.Node = gm.graph.call_module(name, (value,))
    node.meta = dict(value.meta)
    for reader in readers:
        reader.replace_input_with(value, node)
    return node
