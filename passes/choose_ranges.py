"""The range of each activation by what it does to the layers that read it.

Least squared error of a tensor is not least error behind the layer that reads it. Of the ranges that
:data:`~fxquant.compiler.observers.MEASURED_RANGES` takes from the statistics of a value, the one is chosen that a
sample shows to give the least error at the outputs of its readers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..compiler.batches import Batch
from ..compiler.observers import MEASURED_RANGES, MeasuredObserver, observer_of, observers_paused
from ..compiler.qdq import round_trip
from ..compiler.values import bind_inputs
from .assign_precision import Assignment

MEASURED = 2  # batches


def choose_ranges(gm: fx.GraphModule, assignment: Assignment, sample: Sequence[Batch]) -> int:
    """Set the choice of every observer of the kind in a calibrated graph. Returns the number that got one."""
    meter = _Meter(gm, assignment)
    if not meter.observers:
        return 0
    with torch.no_grad(), observers_paused(gm):
        for batch in sample[:MEASURED]:
            meter.run(*bind_inputs(gm, *batch))
    for observer, errors in meter.errors.items():
        observer.choose = MEASURED_RANGES[int(errors.argmin())]
    return len(meter.errors)


class _Meter(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule, assignment: Assignment) -> None:
        super().__init__(gm)
        self.readers = {u.root for u in assignment.int8_units if u.rule.weighted and u.root.op == "call_module"}
        self.observers: dict[fx.Node, MeasuredObserver] = {}
        for node in gm.graph.nodes:
            module = self.submodules.get(str(node.target)) if node.op == "call_module" else None
            observer = observer_of(module)
            if isinstance(observer, MeasuredObserver):
                self.observers[node] = observer
        self.known = {o: [o.qparams_for(c) for c in MEASURED_RANGES] for o in self.observers.values() if o.count}
        self.errors: dict[MeasuredObserver, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        source = n.all_input_nodes[0] if n in self.readers else None
        if source in self.observers:
            observer = self.observers[source]
            layer, x = self.submodules[str(n.target)], self.env[source]
            power = float(result.square().sum()) or 1.0
            errors = self.errors.setdefault(observer, torch.zeros(len(MEASURED_RANGES)))
            for number, known in enumerate(self.known[observer]):
                rounded = layer(round_trip(x, known))
                errors[number] += float((rounded - result).square().sum()) / power
        return result
