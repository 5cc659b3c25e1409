"""A compilation under way: what it was asked to do, and what is known of the model so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import fx

from ..backends.base import Backend
from ..backends.units import Matched, Unit
from ..passes.assign_precision import Assignment, Passed
from ..passes.base import Pass, PassResult
from ..passes.dynamic import LayerPlan
from .batches import Sample
from .capture import Leaf
from .config import QuantConfig
from .errors import ConfigError
from .modes import Modes
from .overrides import ResolvedConfig


@dataclass(frozen=True)
class Options:
    """What a compilation was asked to do; ``probe`` is called after every step with its name and the graph."""

    backend: Backend
    config: QuantConfig
    leaf_modules: Sequence[Leaf] = ()
    snapshots: bool = False
    probe: Callable[[str, fx.GraphModule], None] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.config, QuantConfig):
            raise ConfigError(f"config must be a QuantConfig, got {type(self.config).__name__}.")


@dataclass
class Work:
    """A model on its way through the pipeline.

    Attributes:
        gm: the graph, rewritten in place from step to step; a copy of the model's from the start.
        notes: remarks and refusals of passes, by node.
        sample: a few batches, kept for the passes that need data; empty before :func:`prepare`.
        snapshots: the graph after each step, if asked for.
        assignment: int8 or fp32 for every op; None before :func:`prepare`.
        folded_linears: linear layers with a batch normalisation folded into them.
        layers: what becomes of layers that overrides ask to have int8 or fp16 weights, and fp32 in and out.
        remark: on the whole model, for the report.
    """

    gm: fx.GraphModule
    options: Options
    fp32_bytes: int
    notes: dict[fx.Node, str] = field(default_factory=dict)
    snapshots: dict[str, str] = field(default_factory=dict)
    assignment: Assignment | None = None
    folded_linears: list[fx.Node] = field(default_factory=list)
    layers: LayerPlan = field(default_factory=LayerPlan)
    remark: str = ""
    sample: Sample = field(default_factory=Sample)

    def snapshot(self, step: str) -> None:
        """Keep and show the graph as it is after ``step``."""
        if self.options.snapshots:
            self.snapshots[step] = str(self.gm.graph)
        if self.options.probe:
            self.options.probe(step, self.gm)

    def apply(self, rewrite: Pass, refused: Callable[[fx.Node], bool] = lambda node: True) -> None:
        """Run a pass and keep what it says; its refusals for the nodes that ``refused`` is true for."""
        result = rewrite(self.gm, self.options.backend.table)
        self.note(result, refused)
        self.snapshot(rewrite.name)

    def note(self, result: PassResult, refused: Callable[[fx.Node], bool] = lambda node: True) -> None:
        """Keep what a pass says for the report."""
        for texts in (result.remarks, {n: t for n, t in result.refusals.items() if refused(n)}):
            for node, text in texts.items():
                self.notes[node] = f"{self.notes[node]}; {text}" if node in self.notes else text

    def on_copy(self, gm: fx.GraphModule, copies: Mapping[fx.Node, fx.Node]) -> Work:
        """The same on ``gm``, a copy of the graph, by whose nodes ``copies`` has those of the copy."""
        return replace(
            self,
            gm=gm,
            notes=with_nodes(self.notes, copies),
            folded_linears=with_nodes(self.folded_linears, copies),
            snapshots=dict(self.snapshots),
            assignment=with_nodes(self.assignment, copies),
            layers=with_nodes(self.layers, copies),
        )


def with_nodes(value: Any, copies: Mapping[fx.Node, fx.Node]) -> Any:
    """What is known of a graph, as known of its copy: every node in ``value`` replaced by its copy."""
    if isinstance(value, fx.Node):
        return copies.get(value, value)
    if isinstance(value, Assignment | Matched | Unit | ResolvedConfig | LayerPlan | Modes | Passed):
        return replace(value, **{f.name: with_nodes(getattr(value, f.name), copies) for f in fields(value)})
    if isinstance(value, dict):
        return {with_nodes(k, copies): with_nodes(v, copies) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return type(value)(with_nodes(v, copies) for v in value)
    return value
