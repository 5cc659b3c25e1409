"""The range of each activation by its effect on the layers that read it.

The range of least squared error of a tensor need not give the least error at the output of the layer that reads it. So
the pass takes the range in :data:`~fxquant.compiler.numerics.observers.MEASURED_RANGES` with the least error at the
outputs of the readers on a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ...compiler.execution.batches import run_batches
from ...compiler.execution.graphs import called_module
from ...compiler.execution.sample import Batch
from ...compiler.execution.visitor import Visitor
from ...compiler.numerics.observer import observers_paused
from ...compiler.numerics.observers import MEASURED_RANGES, MeasuredObserver
from ...compiler.numerics.quantize import round_trip
from ...compiler.numerics.stubs import observer_of
from ..analysis.assignment import Assignment
from ..base import PassResult

MEASURED = 2  # batches


class ChooseRanges:
    """Exact: sets the range of every :class:`MeasuredObserver`, which still passes values through.

    Args:
        assignment: which ops are int8.
        sample: calibration batches.
    """

    name = "choose_ranges"
    exact = True

    def __init__(self, assignment: Assignment, sample: Sequence[Batch]) -> None:
        self.assignment, self.sample = assignment, sample

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        meter = _Meter(gm, self.assignment)
        if not meter.observers:
            return PassResult(0)
        with observers_paused(gm):
            run_batches(meter.run.call, self.sample[:MEASURED], "measure ranges")
        for observer, errors in meter.errors.items():
            observer.settle_on(MEASURED_RANGES[int(errors.argmin())])
        return PassResult(len(meter.errors))


class _Meter:
    def __init__(self, gm: fx.GraphModule, assignment: Assignment) -> None:
        self.run = Visitor(gm, self._see)
        self.readers = {u.root for u in assignment.int8_units if u.row.weighted and u.root.op == "call_module"}
        self.observers: dict[fx.Node, MeasuredObserver] = {}
        for node in gm.graph.nodes:
            module = called_module(node, self.run.submodules)
            observer = observer_of(module)
            if isinstance(observer, MeasuredObserver) and not observer.settled:
                self.observers[node] = observer
        self.known = {o: [o.qparams_for(c) for c in MEASURED_RANGES] for o in self.observers.values() if o.count}
        self.errors: dict[MeasuredObserver, Tensor] = {}

    def _see(self, n: fx.Node, result: Any) -> Any:
        source = n.all_input_nodes[0] if n in self.readers else None
        if source in self.observers:
            observer = self.observers[source]
            layer, x = self.run.submodules[str(n.target)], self.run.env[source]
            power = float(result.square().sum()) or 1.0
            errors = self.errors.setdefault(observer, torch.zeros(len(MEASURED_RANGES)))
            for number, known in enumerate(self.known[observer]):
                rounded = layer(round_trip(x, known))
                errors[number] += float((rounded - result).square().sum()) / power
        return result
