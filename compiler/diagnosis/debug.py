"""Where a model loses accuracy: weights and outputs of every layer after each step, and its SQNR at the end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from ...backends.base.backend import Target
from ...backends.base.op import Output
from ...backends.ops.table import OPS
from ...passes.dynamic.layer_maker import row_of
from ...passes.quantization.frozen_layers import frozen_layers
from ..capture.model_checks import checked_model
from ..core.config import QuantConfig
from ..core.entry_point import entry_point
from ..core.messages import check_positive
from ..core.overrides import module_path
from ..core.progress import progress, verbosity
from ..execution.batches import as_batches, run_batches
from ..execution.graphs import attribute
from ..execution.sample import Batch, Sample
from ..execution.stepper import Stepper
from ..execution.visitor import Visitor
from ..numerics.metrics import sqnr
from ..numerics.observer import observers_paused
from ..numerics.observers import HistogramObserver
from ..numerics.quantize import dequantize_channels
from ..workflows.capture_model import capture_model, captured_on
from ..workflows.options import Options
from ..workflows.stages import FrozenModel
from ..workflows.static import calibrate, freeze, prepare
from .inspection import Inspection, LayerView

__all__ = ["Inspection", "LayerView", "inspect"]


@entry_point
def inspect(
    model: nn.Module,
    calibration: Iterable[Any],
    *,
    config: QuantConfig | None = None,
    target: Target | None = None,
    batches: int = 8,
    verbose: bool | None = None,
) -> Inspection:
    """Quantize ``model`` step by step, without choosing kernels, and record every layer after each step.

    Args:
        model: as of ``compile``; it is not changed.
        calibration: as of ``compile``. The first ``batches`` are read, and everything is measured on them.
        config, target, verbose: as of ``compile``.
        batches: how many batches to use: at most 8, and fewer if they exceed 16 MiB.

    Raises:
        ConfigError, ModelError, CaptureError, CalibrationError: as of ``compile``.
    """
    model = checked_model(model)
    check_positive("batches", batches)
    recorder = _Recorder()
    options = Options.of(config, target=target, probe=recorder)
    with verbosity(verbose):
        captured = capture_model(model, options)
        sample = Sample()
        sample.fill(as_batches(calibration, captured.signature, batches))
        captured = captured_on(captured, sample[0])
        recorder.begin(sample, captured.gm)
        frozen = freeze(calibrate(prepare(captured, sample), sample))
        return Inspection(recorder.steps, _layer_sqnr(frozen, recorder.paths, sample))


def _layer_sqnr(frozen: FrozenModel, paths: dict[fx.Node, str], given: list[Batch]) -> dict[str, float]:
    exact, rounded = Stepper(frozen.exact.module, given), Stepper(frozen.gm, given)
    layers = [unit.root for unit in frozen_layers(frozen.gm, frozen.assignment)]
    found = {}
    for node in progress(layers, "compare layers", "layer", len(layers)):
        found[paths[node]] = sqnr(exact.through(frozen.exact.of[node]), rounded.through(node))
    return found


@dataclass
class _Recorder:
    """Called after each step with the graph as it is then."""

    steps: dict[str, dict[str, LayerView]] = field(default_factory=dict)
    paths: dict[fx.Node, str] = field(default_factory=dict)
    given: list[Batch] = field(default_factory=list)

    def begin(self, given: list[Batch], gm: fx.GraphModule) -> None:
        """There is data from now on. The rewrites so far are exact: they count as the first step."""
        self.given = given
        modules = dict(gm.named_modules())
        for node in gm.graph.nodes:
            row = OPS.of(node, modules)
            if node.op == "call_module" and row and row.weighted and row.output is not Output.WEIGHT_ONLY:
                self.paths[node] = module_path(node)
        self("capture and fold", gm)

    def __call__(self, step: str, gm: fx.GraphModule) -> None:
        if not self.given:
            return
        seen: dict[fx.Node, HistogramObserver] = {}

        def see(node: fx.Node, value: Any) -> Any:
            if node in self.paths and isinstance(value, Tensor):
                seen.setdefault(node, HistogramObserver(node.name)).observe(value.detach())
            return value

        with observers_paused(gm):
            run_batches(Visitor(gm, see).call, self.given, f"inspect {step}")
        self.steps[step] = {
            self.paths[n]: LayerView(*_weight_range(n, gm), found.low, found.high, found.histogram)
            for n, found in seen.items()
        }


def _weight_range(node: fx.Node, gm: fx.GraphModule) -> tuple[Tensor, Tensor]:
    """The extremes of the weight of a layer per output channel."""
    if node.op == "call_module":
        layer: Any = gm.get_submodule(str(node.target))
        weight, axis = layer.weight.detach(), row_of(layer).channel_axis
    else:
        known: Any = node.args[1]
        integers, scale, zero_point = (attribute(gm, n) for n in known.args[:3])
        axis = known.args[3]
        weight = dequantize_channels(integers, scale, zero_point, axis)
    rows = weight.movedim(axis, 0).flatten(1)
    return rows.amin(1), rows.amax(1)
