"""Where a model loses accuracy: every layer's weights and outputs after each step, and its SQNR at the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, fx, nn

from ..backends.base import OpTable, Output, Target
from ..backends.x86 import X86Backend
from ..passes.freeze import frozen_layers
from .batches import Batch, Sample, as_batches, run_batch
from .capture import check_model
from .config import QuantConfig
from .errors import check_positive
from .lockstep import Stepper, Twin, sqnr
from .observers import HistogramObserver, observers_paused
from .overrides import module_path
from .pipeline import prepare, quantize, start
from .qdq import dequantize_channels
from .ranges import Histogram
from .values import attribute, bind_inputs
from .work import Options


@dataclass(frozen=True)
class LayerView:
    """A layer after one step of the pipeline.

    Attributes:
        weight_low, weight_high: the extremes of its weight per output channel, as the kernels will see it.
        low, high: the extremes of its output over the batches.
        histogram: of its output.
    """

    weight_low: Tensor
    weight_high: Tensor
    low: float
    high: float
    histogram: Histogram

    @property
    def weight_ranges(self) -> Tensor:
        """Largest magnitude of the weights of each output channel."""
        return torch.maximum(self.weight_high, -self.weight_low)


@dataclass(frozen=True)
class Inspection:
    """What :func:`inspect` found; print it for a table.

    Attributes:
        steps: for each step of the pipeline, in order, its layers by path.
        sqnr: of each int8 layer's output in the frozen model, in dB, given what reaches it there.
    """

    steps: Mapping[str, Mapping[str, LayerView]]
    sqnr: Mapping[str, float]

    def __str__(self) -> str:
        first, last = next(iter(self.steps.values())), list(self.steps.values())[-1]
        rows = []
        for path, view in last.items():
            before = first.get(path, view)
            decibel = f"{self.sqnr[path]:.1f}" if path in self.sqnr else "fp32"
            weights = f"{_span(before.weight_ranges)} -> {_span(view.weight_ranges)}"
            outputs = f"{before.low:.3g}..{before.high:.3g} -> {view.low:.3g}..{view.high:.3g}"
            rows.append((path, decibel, weights, outputs))
        return tabulate(rows, ("layer", "SQNR dB", "weight range by channel", "output range"), disable_numparse=True)


def inspect(
    model: nn.Module,
    calibration: Iterable[Any],
    *,
    config: QuantConfig | None = None,
    target: Target | None = None,
    batches: int = 8,
) -> Inspection:
    """Quantize ``model`` step by step, as :func:`fxquant.compile` does short of the kernels, and look at each layer.

    Args:
        model: as of ``compile``; it is not changed.
        calibration: as of ``compile``; the first ``batches`` are read, and everything is measured on them.
        config: as of ``compile``.
        target: as of ``compile``.
        batches: how many batches to use at most; no more than ``compile`` keeps (8, and 16 MiB).

    Raises:
        ConfigError, ModelError, CaptureError, CalibrationError: as ``compile`` does.
    """
    check_model(model)
    check_positive("batches", batches)
    backend = X86Backend(target)
    recorder = _Recorder(backend.table)
    work = start(model, Options(backend, QuantConfig() if config is None else config, probe=recorder))
    sample = Sample()
    sample.fill(as_batches(calibration, work.gm, batches))
    recorder.begin(sample, work.gm)
    prepare(work, sample)
    for number, batch in enumerate(sample):
        run_batch(work.gm, batch, number)
    twin = quantize(work)
    assert work.assignment is not None
    names = {u.root: recorder.paths[u.root] for u in frozen_layers(work.gm, work.assignment)}
    return Inspection(recorder.steps, _layer_sqnr(work.gm, twin, names, sample))


def _layer_sqnr(gm: fx.GraphModule, twin: Twin, names: Mapping[fx.Node, str], given: list[Batch]) -> dict[str, float]:
    exact, rounded = Stepper(twin.module, given), Stepper(gm, given)
    return {name: sqnr(exact.through(twin.of[node]), rounded.through(node)) for node, name in names.items()}


def _span(ranges: Tensor) -> str:
    return f"{float(ranges.min()):.3g}..{float(ranges.max()):.3g}"


@dataclass
class _Recorder:
    """Called after each step with the graph as it then is."""

    table: OpTable
    steps: dict[str, dict[str, LayerView]] = field(default_factory=dict)
    paths: dict[fx.Node, str] = field(default_factory=dict)
    given: list[Batch] = field(default_factory=list)

    def begin(self, given: list[Batch], gm: fx.GraphModule) -> None:
        """From here on there is data. What has been rewritten so far is exact: it counts as the first step."""
        self.given = given
        modules = dict(gm.named_modules())
        for node in gm.graph.nodes:
            rule = self.table.of(node, modules)
            if node.op == "call_module" and rule and rule.weighted and rule.output is not Output.WEIGHT_ONLY:
                self.paths[node] = module_path(node)
        self("capture and fold", gm)

    def __call__(self, step: str, gm: fx.GraphModule) -> None:
        if not self.given:
            return
        watcher = _Watcher(gm, set(self.paths))
        with observers_paused(gm):
            for number, batch in enumerate(self.given):
                run_batch(lambda *args, **kwargs: watcher.run(*bind_inputs(gm, args, kwargs)), batch, number)
        self.steps[step] = {
            self.paths[n]: LayerView(*self._weight(n, gm), seen.low, seen.high, seen.histogram)
            for n, seen in watcher.seen.items()
        }

    def _weight(self, node: fx.Node, gm: fx.GraphModule) -> tuple[Tensor, Tensor]:
        if node.op == "call_module":
            layer = gm.get_submodule(str(node.target))
            rule = self.table.find(type(layer))
            assert rule is not None and isinstance(layer.weight, Tensor)
            weight, axis = layer.weight.detach(), rule.channel_axis
        else:
            known: Any = node.args[1]
            integers, scale, zero_point = (attribute(gm, n) for n in known.args[:3])
            axis = known.args[3]
            weight = dequantize_channels(integers, scale, zero_point, axis)
        rows = weight.movedim(axis, 0).flatten(1)
        return rows.amin(1), rows.amax(1)


class _Watcher(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule, nodes: set[fx.Node]) -> None:
        super().__init__(gm)
        self.nodes = nodes
        self.seen: dict[fx.Node, HistogramObserver] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self.nodes and isinstance(result, Tensor):
            self.seen.setdefault(n, HistogramObserver(n.name)).observe(result.detach())
        return result
