"""The stages of a model on its way: captured, prepared, calibrated, frozen, lowered.

Each stage holds the graph of the one before it, rewritten in place, and what became known since. Do not use a stage
again after the next one was made from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, TypeVar

from torch import fx, nn

from ...backends.base.backend import Lowered
from ...backends.base.program import FrozenProgram
from ...passes.analysis.assignment import Assignment
from ...passes.dynamic.plan import LayerPlan
from ...passes.runner import PassRunner
from ..execution.graphs import GraphCopy, with_nodes
from ..execution.inputs import Signature
from ..execution.interface import ANY_CALL, Interface
from ..execution.layouts import OutputLayouts
from ..execution.sample import Sample
from ..report.report import Report
from .options import Options

Assigned = TypeVar("Assigned", bound="PreparedModel")
Next = TypeVar("Next", bound="PreparedModel")


@dataclass(frozen=True)
class UntracedModel:
    """A model that ``torch.fx`` cannot trace. ``torch.export`` may, as soon as there is an example.

    Attributes:
        model: a copy for inference.
        options: what was asked for.
        fp32_bytes: bytes of the parameters and buffers of the float model.
        error: why ``torch.fx`` cannot.
        path: the module that it cannot trace; None if that is not known.
    """

    model: nn.Module
    options: Options
    fp32_bytes: int
    error: str
    path: str | None

    @property
    def float_copy(self) -> nn.Module:
        """The copy of the model."""
        return self.model

    @property
    def signature(self) -> Signature:
        """The inputs of forward()."""
        return Signature.of_forward(self.model)


@dataclass(frozen=True)
class CapturedModel:
    """A float graph with one spelling per op.

    Attributes:
        gm: the graph; it belongs to the compilation.
        options: what was asked for.
        runner: runs the passes over ``gm``, and holds what they said.
        fp32_bytes: bytes of the parameters and buffers of the float model.
        folded_linears: linear layers with a batch normalization folded into them.
        left_linears: linear layers with one behind them that can be folded if their output is a matrix.
        interface: the calls that the graph holds for, and the structure of its results.
        original: a copy of the model for inference, while the graph was not compared with it.
    """

    gm: fx.GraphModule
    options: Options
    runner: PassRunner
    fp32_bytes: int
    folded_linears: tuple[fx.Node, ...] = ()
    left_linears: tuple[fx.Node, ...] = ()
    interface: Interface = ANY_CALL
    original: nn.Module | None = None

    @property
    def float_copy(self) -> nn.Module:
        """The copy of the model that the graph was not compared with yet."""
        assert self.original is not None
        return self.original

    @property
    def signature(self) -> Signature:
        """The inputs of the graph."""
        return Signature.of(self.gm)


@dataclass(frozen=True)
class PreparedModel:
    """A float graph with observers in place.

    Attributes:
        gm, options, runner, fp32_bytes, interface: as of :class:`CapturedModel`.
        assignment: the precision of every op.
        layers: layers that become dynamic layers, as overrides ask.
        sample: a few batches of the calibration data, at least one.
    """

    gm: fx.GraphModule
    options: Options
    runner: PassRunner
    fp32_bytes: int
    interface: Interface
    assignment: Assignment
    layers: LayerPlan
    sample: Sample

    def as_stage(self, kind: type[Next], **more: Any) -> Next:
        """The next stage, of ``kind``, with ``more`` that became known."""
        return kind(**{f.name: getattr(self, f.name) for f in fields(PreparedModel)}, **more)

    def on_copy(self: Assigned, gm: fx.GraphModule, of: Mapping[fx.Node, fx.Node]) -> Assigned:
        """The same for ``gm``, a copy of the graph; ``of`` has its nodes by those of the graph."""
        return replace(
            self,
            gm=gm,
            runner=self.runner.on_copy(of),
            assignment=with_nodes(self.assignment, of),
            layers=with_nodes(self.layers, of),
        )


@dataclass(frozen=True)
class CalibratedModel(PreparedModel):
    """A float graph whose observers have seen the calibration data."""


@dataclass(frozen=True)
class FrozenModel(PreparedModel):
    """A frozen graph.

    Attributes:
        exact: the graph in fp32, and its nodes by those of the frozen graph.
        keep_roundings: the model was trained with its roundings.
        remark: on the whole model, for the report.
    """

    exact: GraphCopy
    keep_roundings: bool = False
    remark: str = ""

    @cached_property
    def program(self) -> FrozenProgram:
        """The graph as a program."""
        fp32 = frozenset(self.assignment.reasons)
        deterministic = self.options.config.deterministic
        return FrozenProgram(self.gm, self.sample[0], fp32, self.keep_roundings, deterministic)


@dataclass(frozen=True)
class LoweredModel:
    """A verified result.

    Attributes:
        program: the frozen program, which depends on no backend.
        lowered: what the backend made of it.
        report: one row per op.
        snapshots: the graph after each step, if asked for.
        layouts: the memory layouts of outputs in fp32.
        interface: the calls that the graph holds for, and the structure of its results.
    """

    program: FrozenProgram
    lowered: Lowered
    report: Report
    snapshots: Mapping[str, str]
    layouts: OutputLayouts | None
    interface: Interface
