"""Any int8/fp32 mix of one calibrated model, without calibrating it again."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

from torch import fx

from ...backends.base.op import Output
from ...backends.ops.units import Unit
from ...passes.analysis.assignment import Assignment
from ...passes.quantization.place import PlaceObservers, make_observer
from ..execution.batches import run_batch
from ..execution.graphs import ModelGraph, called_module
from ..numerics.observer import Observer
from ..numerics.observers import FixedObserver
from ..numerics.stubs import DeQuantStub, observer_of, observers_of
from .stages import CalibratedModel


def with_fp32_ops(model: CalibratedModel, fp32: Mapping[str, str]) -> CalibratedModel:
    """A calibrated copy of ``model`` in which more ops stay in fp32.

    Args:
        model: it is left as it is. Parameters are shared, statistics are copied.
        fp32: the reason for each op, by the name of its first node.
    """
    known = observers_of(model.gm)
    copied = _without_observers(model)
    copied = replace(copied, assignment=copied.assignment.with_fp32(fp32))
    new: list[Observer] = []

    def make(unit: Unit | None, label: str, assignment: Assignment) -> Observer:
        observer = known.get(label)
        fixed = unit is not None and unit.row.output is Output.FIXED
        if observer is None or isinstance(observer, FixedObserver) != fixed:
            new.append(make_observer(unit, label, assignment))
            return new[-1]
        observer = copy.deepcopy(observer)
        observer.enabled = False
        return observer

    copied.runner.run(PlaceObservers(copied.assignment, make), copied.gm)
    for number, batch in enumerate(model.sample if new else ()):
        run_batch(copied.gm, batch, number)
    return copied


def _without_observers(model: CalibratedModel) -> CalibratedModel:
    """A copy without observers. Modules that hold layers to be replaced are copied as well."""
    graph, of = fx.Graph(), dict[fx.Node, fx.Node]()
    modules = dict(model.gm.named_modules())
    for node in model.gm.graph.nodes:
        module = called_module(node, modules)
        if observer_of(module) is not None or isinstance(module, DeQuantStub):
            of[node] = of[node.args[0]]
        else:
            of[node] = graph.node_copy(node, of.__getitem__)
    gm = ModelGraph(model.gm, graph)
    copies: dict[int, object] = {}  # one memo for all, so that shared modules and parameters stay shared
    for node in graph.nodes:
        path = str(node.target)
        if node.op == "call_module" and any(request.startswith(f"{path}.") for request in model.layers.requests):
            gm.set_submodule(path, copy.deepcopy(modules[path], copies))
    return model.on_copy(gm, of)
