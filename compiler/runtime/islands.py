"""Models of which a part stays Python: the parts around it and below it are compiled on their own.

An island is a module that neither front end captures: its forward() branches on values, calls other libraries, loops
over data or keeps a state. Its code runs as it is, and the modules that it calls are regions: each is compiled like a
model of its own. If the rest of the model can be captured with its islands as leaves, it is one graph around them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from dataclasses import replace
from typing import Any

from torch import nn

from ...backends.ops.units import FUSED
from ..capture.calls import Calls, watch_calls
from ..capture.capture import Leaf, leaves
from ..core.errors import CaptureError, ModelError
from ..core.overrides import Part, Subject, module_subject, resolve
from ..core.progress import log
from ..execution.batches import run_batch
from ..execution.inputs import Signature
from ..execution.sample import Batch, Sample, copy_batch
from ..execution.state import SavedState
from ..report.island_report import island_report
from ..report.report import Report
from ..workflows.capture_model import capture_model, captured_on
from ..workflows.mixed_precision import freeze_with_mixed_precision
from ..workflows.options import Options
from ..workflows.stages import CapturedModel, UntracedModel
from ..workflows.static import calibrate, lower, prepare
from .compiled import Compiled
from .float_model import FloatModel
from .region import Observing, Region

Observe = Callable[[nn.Module, Options], Observing]


class IslandModel:
    """A model with islands, while it is calibrated.

    Args:
        model: what cannot be captured as a whole.
        error: why not.
        batch: a batch of calibration data.
        observe: makes what observes a region.

    Attributes:
        islands: why each stays Python, by path; "" is the model itself.
    """

    def __init__(
        self, model: CapturedModel | UntracedModel, error: CaptureError, batch: Batch, observe: Observe
    ) -> None:
        self.options, self.tree, self._observe_region = model.options, model.float_copy, observe
        self._state = SavedState(self.tree)
        self.islands = {error.path: _line(error)}
        self._leaves = self._leaves_for(error.path, batch)
        if not self._leaves:
            self.islands = {"": next(iter(self.islands.values()))}
        self.regions: dict[str, Region] = {}
        for path in filter(None, self.islands):
            if self._may_be_region(path):
                self._add_region(path)
        self._batches: list[Batch] = []

    @property
    def signature(self) -> Signature:
        """The inputs of forward()."""
        return Signature.of_forward(self.tree)

    def _leaves_for(self, path: str, batch: Batch) -> list[Leaf]:
        """``leaf_modules`` with which the rest of the model can be captured; none if it cannot."""
        leaves = list(self.options.leaf_modules)
        while path and path not in leaves:  # a leaf at fault again changes what is around it
            leaves.append(path)
            try:
                captured_on(capture_model(self.tree, replace(self.options, leaf_modules=leaves)), batch)
                return leaves
            except CaptureError as error:
                path = error.path
                self.islands[path] = _line(error)
        return []

    def _add_region(self, path: str) -> Region:
        *around, _ = module_subject(path, dict(self.tree.named_modules()), "").classes
        part = Part(self.options.part.within(path), (*self.options.part.classes, type(self.tree), *around))
        module = self.tree.get_submodule(path)
        inner = [_leaf_below(path, module, leaf) for leaf in self.options.leaf_modules]
        options = replace(self.options, part=part, leaf_modules=[leaf for leaf in inner if leaf is not None])
        self.regions[path] = Region(part.path, module, lambda module: self._observe_region(module, options))
        return self.regions[path]

    def observe(self, batch: Batch, number: int) -> Any:
        """Run in fp32 on ``batch``; regions observe what they are called with."""
        if self._leaves:
            self._batches.append(copy_batch(batch))
            return run_batch(self.tree, batch, number)
        before = SavedState(self.tree)
        while True:
            result, calls, writing = watch_calls(self.tree, batch, number, self.islands)
            self._observe_new(calls)
            found = {path: self._why_python(path, writing) for path in self.regions}
            found = {path: reason for path, reason in found.items() if reason}
            if not found:
                return result
            # They are part of the code around them. Their own calls are seen in a second run of the batch.
            for path in found:
                self.regions.pop(path).removed()
            self.islands |= found
            before.restore()

    def _why_python(self, path: str, writing: Collection[str]) -> str:
        """Why the module of a region has to stay Python; "" if it does not."""
        if path in writing:
            return "it changes its input"
        changed = self._state.changes(self.tree.get_submodule(path))
        if changed:
            return f"{', '.join(map(repr, changed[:3]))} of it are changed, and may be read, by Python code around it"
        return self.regions[path].island

    def _observe_new(self, calls: Calls) -> None:
        """Make regions of modules that are called for the first time, and give them these calls."""
        new = {path: given for path, given in calls.items() if self._may_be_region(path)}
        now = SavedState(self.tree)
        self._state.restore()  # a region begins as it was when the model was compiled
        regions = {path: self._add_region(path) for path in new}
        now.restore()
        for path, region in regions.items():
            for args, kwargs in new[path]:
                region(*args, **kwargs)

    def _may_be_region(self, path: str) -> bool:
        module = self.tree.get_submodule(path)
        if "forward" in vars(module) or next(module.parameters(), None) is None:
            return False
        paths, classes = leaves(self.tree, self.options.leaf_modules)
        return path not in paths and not isinstance(module, classes)

    def compiled(self, fallback: FloatModel | None) -> Compiled:
        """Compile the regions, and the graph around them; ``fallback`` runs calls that the graph does not take.

        Raises:
            ModelError: there is nothing to quantize.
            ConfigError: an override matches nothing.
        """
        for region in self.regions.values():
            region.freeze()
        self._state.restore()
        around = self._compiled_around(fallback) if self._leaves else None
        parts = {path: region.compiled.report for path, region in self.regions.items() if region.compiled}
        floats = {path: region.reason for path, region in self.regions.items() if not region.compiled}
        if around is None and not parts:
            listed = "".join(f"\n  {path or 'the model'}: {reason}" for path, reason in (self.islands | floats).items())
            raise ModelError(f"The model has nothing to quantize.{listed}")
        log.info("islands: %s; %d regions compiled", ", ".join(self.islands), len(parts))
        report = island_report(self.tree, around.report if around is not None else None, self.islands, parts, floats)
        if self.options.part.whole:
            self._check_overrides(report)
        if around is not None:
            return replace(around, report=report)
        return Compiled(self.tree, report, None, self.tree, None, {})

    def _check_overrides(self, report: Report) -> None:
        modules = dict(self.tree.named_modules())
        subjects: dict[Hashable, Subject] = {path: module_subject(path, modules, "") for path in modules}
        for row in report.rows:
            subjects |= {(row.node, op): Subject(op, row.node) for op in row.op.split(FUSED)}
        resolve(self.options.config, subjects)

    def _compiled_around(self, fallback: FloatModel | None) -> Compiled | None:
        options = replace(self.options, leaf_modules=self._leaves, part=replace(self.options.part, whole=False))
        sample = Sample()
        sample.fill(iter(self._batches))
        try:
            prepared = prepare(captured_on(capture_model(self.tree, options), sample[0]), sample)
        except (CaptureError, ModelError) as error:
            self.islands[""] = _line(error)
            return None
        return Compiled.of(lower(freeze_with_mixed_precision(calibrate(prepared, self._batches))), fallback)


def _line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _leaf_below(path: str, module: nn.Module, leaf: Leaf) -> Leaf | None:
    """The entry of ``leaf_modules`` as it is within the module at ``path``; None if it names nothing there."""
    if isinstance(leaf, str):
        return leaf.removeprefix(f"{path}.") if leaf.startswith(f"{path}.") else None
    return leaf if any(m is not module and isinstance(m, leaf) for m in module.modules()) else None
