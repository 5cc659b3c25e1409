"""Place observers after int8 values, QuantStubs where fp32 enters an int8 region, DeQuantStubs where it leaves."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx, nn

from ..backends.base import Output
from ..backends.units import Unit
from ..compiler.observers import OBSERVER_CLASSES, DeQuantStub, FixedObserver, Observer, QuantStub
from ..compiler.stubs import STUBS
from .assign_precision import Assignment, reads_size
from .base import finish

MakeObserver = Callable[[Unit | None, str, Assignment], Observer]


def make_observer(unit: Unit | None, label: str, assignment: Assignment) -> Observer:
    """The observer that the configuration asks for, for the output of ``unit`` or a value from outside."""
    if unit is not None and unit.rule.output is Output.FIXED:
        assert unit.rule.fixed is not None
        return FixedObserver(label, unit.rule.fixed)
    config = assignment.config_of(unit) if unit else assignment.config.default
    return OBSERVER_CLASSES[config.observer](label, config.activation.endswith("symmetric"))


def place(gm: fx.GraphModule, assignment: Assignment, make: MakeObserver = make_observer) -> int:
    """Insert the modules; the graph stays a runnable fp32 one. Returns the number of modules placed."""
    count = 0
    owner = {n: u for u in assignment.matched.units for n in u.nodes}
    units = [u for u in assignment.int8_units if u.rule.output is not Output.WEIGHT_ONLY]
    int8_roots = {u.root for u in units}
    reads_int8 = {(n, u.root) for u in units for n in u.inputs}
    for value in list(gm.graph.nodes):
        unit = owner.get(value)
        if unit is not None and unit.root in int8_roots:
            if value is not unit.output or unit.rule.multiple:
                continue
        else:
            unit = None
        quantized = [u for u in value.users if (value, u) in reads_int8]
        others = [u for u in value.users if u not in quantized and not reads_size(u, owner, assignment.values)]
        if unit is None and quantized:
            stub = QuantStub(make(None, value.name, assignment))
            _insert(gm, value, f"{value.name}_quant", stub, quantized)
            count += 1
        elif unit is not None and (quantized or not unit.rule.float_output):
            count += _place_output(gm, value, unit, others, make, assignment)
    for node in list(gm.graph.nodes):
        if node.op == "call_function" and node.target in STUBS.values():
            node.replace_all_uses_with(node.args[0])
            gm.graph.erase_node(node)
    finish(gm)
    return count


def _place_output(
    gm: fx.GraphModule,
    value: fx.Node,
    unit: Unit,
    others: list[fx.Node],
    make: MakeObserver,
    assignment: Assignment,
) -> int:
    count, source = 0, value
    if unit.rule.output is not Output.SHARED:
        observer = make(unit, value.name, assignment)
        source = _insert(gm, value, f"{value.name}_observer", observer, list(value.users))
        count += 1
    if others:
        _insert(gm, source, f"{value.name}_dequant", DeQuantStub(), others)
        count += 1
    return count


def _insert(gm: fx.GraphModule, value: fx.Node, name: str, module: nn.Module, readers: list[fx.Node]) -> fx.Node:
    gm.add_submodule(name, module)
    with gm.graph.inserting_after(value):
        node: fx.Node = gm.graph.call_module(name, (value,))
    node.meta = dict(value.meta)
    for reader in readers:
        reader.replace_input_with(value, node)
    return node
