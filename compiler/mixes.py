"""Any int8/fp32 mix of one calibrated model, without calibrating it again."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

from torch import fx

from ..backends.base import Output
from ..backends.units import Unit
from ..passes.assign_precision import Assignment
from ..passes.place import make_observer, place
from .batches import run_batch
from .observers import DeQuantStub, FixedObserver, Observer, observer_of
from .work import Work


def mix(work: Work, fp32: Mapping[str, str]) -> Work:
    """A calibrated copy of ``work``, in which the ops ``fp32`` stay in fp32 besides those that do anyway.

    Args:
        work: calibrated, not frozen; it is left as it is. Parameters are shared, statistics copied.
        fp32: the reason for each, by the name of its first node.
    """
    calibrated = {o.label: o for m in work.gm.modules() if (o := observer_of(m)) is not None}
    copied = _without_observers(work)
    assert copied.assignment is not None
    left = {u.root: fp32[u.root.name] for u in copied.assignment.int8_units if u.root.name in fp32}
    copied.assignment = replace(copied.assignment, reasons={**copied.assignment.reasons, **left})
    new: list[Observer] = []

    def make(unit: Unit | None, label: str, assignment: Assignment) -> Observer:
        known = calibrated.get(label)
        fixed = unit is not None and unit.rule.output is Output.FIXED
        if known is None or isinstance(known, FixedObserver) != fixed:
            new.append(make_observer(unit, label, assignment))
            return new[-1]
        observer = copy.deepcopy(known)
        observer.enabled = False
        return observer

    place(copied.gm, copied.assignment, make)
    copied.snapshot("place")
    for number, batch in enumerate(work.sample if new else ()):
        run_batch(copied.gm, batch, number)
    return copied


def _without_observers(work: Work) -> Work:
    """A copy in which nothing is placed; modules that hold layers which are to be replaced are its own."""
    graph, of = fx.Graph(), dict[fx.Node, fx.Node]()
    modules = dict(work.gm.named_modules())
    for node in work.gm.graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if observer_of(module) is not None or isinstance(module, DeQuantStub):
            of[node] = of[node.args[0]]
        else:
            of[node] = graph.node_copy(node, of.__getitem__)
    gm = fx.GraphModule(work.gm, graph)
    copies: dict[int, object] = {}  # of modules and parameters: what is shared stays so
    for node in graph.nodes:
        path = str(node.target)
        if node.op == "call_module" and any(wish.startswith(f"{path}.") for wish in work.layers.wishes):
            gm.set_submodule(path, copy.deepcopy(modules[path], copies))
    return work.on_copy(gm, of)
