"""From a float module to a lowered one: the steps in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from ..backends.base import Backend, Frozen, Lowered
from ..passes.assign_precision import Assignment, assign_precision
from ..passes.base import Pass
from ..passes.eliminate_noops import EliminateNoops
from ..passes.fold_batchnorm import FoldBatchNorm
from ..passes.freeze import freeze
from ..passes.place import place
from ..passes.verify import verify
from .batches import Batch, run_batch
from .capture import Leaf, capture
from .config import QuantConfig, resolve
from .errors import ModelError
from .normalize import normalize
from .report import Report, build_report, parameter_bytes
from .values import run_values


@dataclass(frozen=True)
class Options:
    """What a compilation was asked to do."""

    backend: Backend
    config: QuantConfig
    leaf_modules: Sequence[Leaf] = ()
    snapshots: bool = False


@dataclass
class Work:
    """A model on its way through the pipeline.

    Attributes:
        gm: the graph, rewritten in place from step to step; a copy of the model's from the start.
        notes: refusals of passes, by node.
        snapshots: the graph after each step, if asked for.
        assignment: int8 or fp32 for every op; None before :func:`prepare`.
    """

    gm: fx.GraphModule
    options: Options
    fp32_bytes: int
    notes: dict[fx.Node, str] = field(default_factory=dict)
    snapshots: dict[str, str] = field(default_factory=dict)
    assignment: Assignment | None = None

    def snapshot(self, step: str) -> None:
        """Keep the graph as it is after ``step``."""
        if self.options.snapshots:
            self.snapshots[step] = str(self.gm.graph)

    def apply(self, rewrite: Pass) -> None:
        """Run a pass and keep what it refused."""
        self.notes |= rewrite(self.gm, self.options.backend.table).refusals
        self.snapshot(rewrite.name)


def start(model: nn.Module, options: Options) -> Work:
    """Everything that needs no data: capture, one spelling, folding."""
    gm = capture(model, options.leaf_modules)
    work = Work(gm, options, parameter_bytes((*model.parameters(), *model.buffers())))
    normalize(gm, options.backend.table)
    work.snapshot("capture")
    work.apply(FoldBatchNorm())
    work.apply(EliminateNoops())
    return work


def prepare(work: Work, example: Batch) -> Work:
    """Decide the precision of every op and place observers and stubs. ``work.gm`` stays a runnable fp32 graph.

    Raises:
        CalibrationError: the forward fails on the example.
        ModelError: there is nothing to quantize.
        ConfigError: an override matches nothing.
    """
    gm, table = work.gm, work.options.backend.table
    # First of all: an example that does not fit must change nothing.
    values = run_batch(lambda *args, **kwargs: run_values(gm, args, kwargs), example, 0)
    modules: Mapping[str, nn.Module] = dict(gm.named_modules())
    named = []
    for node in gm.graph.nodes:
        if node.op in ("call_module", "call_function", "call_method"):
            rule = table.of(node, modules)
            named.append((node, rule.name if rule else ""))
    config = resolve(work.options.config, named)
    work.assignment = assign_precision(gm, table, config, values)
    if not work.assignment.int8_units:
        raise ModelError(_nothing_to_quantize(work.assignment))
    work.notes |= work.assignment.matched.refusals
    place(gm, work.assignment)
    work.snapshot("place")
    return work


def convert(work: Work, example: Batch) -> tuple[Lowered, Report]:
    """From a calibrated graph to a verified, lowered one."""
    assert work.assignment is not None
    freeze(work.gm, work.assignment, work.options.backend)
    work.snapshot("freeze")
    lowered = work.options.backend.lower(Frozen(work.gm, *example, frozenset(work.assignment.reasons)))
    work.snapshot("lower")
    verify(lowered, work.assignment)
    table = work.options.backend.table
    report = build_report(work.gm, table, work.assignment, lowered, work.notes, work.fp32_bytes)
    return lowered, report


def _nothing_to_quantize(assignment: Assignment) -> str:
    reasons = [f"  {n.name}: {r}" for n, r in assignment.reasons.items()][:10]
    listed = "\n" + "\n".join(reasons) if reasons else " It has no op that fxquant knows."
    return f"The model has nothing to quantize.{listed}"


def example_of(batch: Batch) -> Batch:
    """``batch`` detached from what the caller may change."""

    def keep(value: Any) -> Any:
        return value.detach().clone() if hasattr(value, "detach") else value

    return tuple(keep(v) for v in batch[0]), {k: keep(v) for k, v in batch[1].items()}
