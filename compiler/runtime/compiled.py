"""What a workflow hands to the module that users hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from ...backends.base.program import FrozenProgram
from ..report.report import Report
from ..workflows.stages import LoweredModel


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

    @staticmethod
    def of(model: LoweredModel) -> Compiled:
        """A static model."""
        graph = model.lowered.executed.module
        return Compiled(model.lowered.run, model.report, graph, graph, model.program, model.snapshots)
