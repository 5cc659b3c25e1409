"""The one place that runs passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from torch import fx

from ..compiler.core.interrupts import checkpoint
from ..compiler.core.memory import release_after
from ..compiler.core.progress import log, stage
from ..compiler.execution.graphs import with_nodes
from ..compiler.execution.sample import Batch
from .base import Pass, PassResult
from .contracts import ContractCheck

Probe = Callable[[str, fx.GraphModule], None]


def _every(node: fx.Node) -> bool:
    return True


@dataclass
class PassRunner:
    """Runs passes over one graph, and keeps what they report.

    Attributes:
        debug: check the contract of every pass.
        keep_snapshots: keep the text of the graph after every step.
        probe: called after every step with its name and the graph.
        example: a batch to check contracts with, once there is one (:meth:`begin`).
        notes: remarks and refusals, by node.
        snapshots: the text of the graph by step.
    """

    debug: bool = False
    keep_snapshots: bool = False
    probe: Probe | None = None
    example: Batch | None = None
    notes: dict[fx.Node, str] = field(default_factory=dict)
    snapshots: dict[str, str] = field(default_factory=dict)
    _unchecked: list[ContractCheck] = field(default_factory=list)

    def run(self, step: Pass, gm: fx.GraphModule, wanted: Callable[[fx.Node], bool] = _every) -> PassResult:
        """Run a pass, and keep its remarks, and its refusals for the nodes that are ``wanted``.

        Raises:
            ContractError: with :attr:`debug`, the pass broke its contract.
        """
        checkpoint()
        check = ContractCheck(step, gm, self.example) if self.debug else None
        with stage(step.name):
            result = step(gm)
        release_after(gm.parameters())
        if check is not None:
            check.verify(result)
            if check.original is not None:
                self._unchecked.append(check)
        self.note(result.remarks)
        self.note({node: text for node, text in result.refusals.items() if wanted(node)})
        if result.rewrites:
            log.info("%s: %d", step.name, result.rewrites)
        self.snapshot(step.name, gm)
        return result

    def begin(self, gm: fx.GraphModule, example: Batch) -> None:
        """There is an example from now on. With :attr:`debug`, check on it what the passes so far computed.

        Raises:
            CalibrationError: forward() fails on the example.
            ContractError: a pass broke its contract.
        """
        self.example = example
        after = [*(check.original for check in self._unchecked[1:]), gm]
        for check, graph in zip(self._unchecked, after, strict=False):
            assert graph is not None
            check.verify_outputs(example, graph)
        self._unchecked.clear()

    def note(self, texts: Mapping[fx.Node, str]) -> None:
        """Add texts for the report."""
        for node, text in texts.items():
            self.notes[node] = f"{self.notes[node]}; {text}" if node in self.notes else text

    def snapshot(self, step: str, gm: fx.GraphModule) -> None:
        """Keep and show the graph after ``step``."""
        if self.keep_snapshots:
            self.snapshots[step] = str(gm.graph)
        if self.probe is not None:
            self.probe(step, gm)

    def on_copy(self, of: Mapping[fx.Node, fx.Node]) -> PassRunner:
        """A runner for a copy of the graph; ``of`` has the nodes of the copy by those of the graph."""
        return replace(self, notes=with_nodes(self.notes, of), snapshots=dict(self.snapshots), _unchecked=[])
