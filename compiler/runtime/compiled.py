"""What a workflow hands to the module that users hold."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from ...backends.base.dynamic_layer import DynamicLayer
from ...backends.base.program import FrozenProgram
from ..execution.inputs import Signature
from ..report.report import Report
from ..workflows.stages import LoweredModel
from .call_forms import CallForms
from .float_model import FloatModel
from .static_call import StaticCall


@dataclass(frozen=True)
class Compiled:
    """A compiled model.

    Attributes:
        run: same arguments and results as forward().
        report: one row per op.
        graph: the graph as executed; None if the model was not traced.
        module: the graph; of a dynamic model, a copy of the model with its layers replaced.
        program: the frozen program, which depends on no backend; None if the model was not traced.
        snapshots: the graph after each step, if asked for.
    """

    run: Callable[..., Any]
    report: Report
    graph: fx.GraphModule | None
    module: nn.Module
    program: FrozenProgram | None
    snapshots: Mapping[str, str]

    def copied(self, memo: dict[int, Any]) -> Compiled:
        """A copy that shares constants, and has its own modules where a user's forward() runs and may keep state."""
        if isinstance(self.run, StaticCall):
            return self
        memo.update({id(layer): layer for layer in self.module.modules() if isinstance(layer, DynamicLayer)})
        module = copy.deepcopy(self.module, memo)
        run = self.run.on_copy(module) if isinstance(self.run, CallForms) else module
        return replace(self, run=run, module=module)

    @staticmethod
    def of(model: LoweredModel, fallback: FloatModel | None = None) -> Compiled:
        """A static model; ``fallback`` runs calls that it does not take."""
        graph, program = model.lowered.executed.module, model.program
        signature = Signature.of(graph)
        example = tuple(signature.bind(*program.example))
        call = StaticCall(model.lowered.run, signature, example, model.layouts, model.interface, fallback)
        return Compiled(call, model.report, graph, graph, program, model.snapshots)
