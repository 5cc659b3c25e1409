"""The static workflow: from a float module to a lowered one, step by step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from ...passes.analysis.assign_precision import assign_precision
from ...passes.analysis.assignment import Assignment
from ...passes.analysis.choice import Choice, nothing_against, only_with_one_scale
from ...passes.dynamic.absorb_relus import AbsorbRelus
from ...passes.dynamic.layer_maker import LayerMaker
from ...passes.dynamic.plan import check_answered
from ...passes.dynamic.swap import SwapLayers
from ...passes.quantization.choose_ranges import ChooseRanges
from ...passes.quantization.correct_bias import CorrectBias
from ...passes.quantization.freeze import Freeze
from ...passes.quantization.learn_rounding import LearnRounding
from ...passes.quantization.place import PlaceObservers
from ...passes.quantization.verify import verify
from ...passes.rewrites.absorb_bias import AbsorbBias
from ...passes.rewrites.equalize import Equalize
from ...passes.rewrites.fold_batchnorm import FoldBatchNorm
from ...passes.rewrites.relu6_as_relu import Relu6AsRelu
from ...passes.rewrites.smooth import Smooth
from ..core.errors import AccuracyWarning, CalibrationError, ModelError
from ..core.messages import warn, where
from ..core.progress import log, stage
from ..execution.batches import run_batch, sampled
from ..execution.graphs import copy_graph
from ..execution.inputs import Signature
from ..execution.layouts import OutputLayouts
from ..execution.sample import Batch, Sample, copy_batch, items_of
from ..execution.shapes import value_infos
from ..execution.stepper import Stepper
from ..numerics.metrics import worst_sqnr
from ..numerics.observer import stop_observing
from ..report.static_report import StaticReport
from .capture_model import capture_model, captured_on
from .options import Options
from .overridden_layers import plan_overridden_layers, resolve_overrides
from .stages import CalibratedModel, CapturedModel, FrozenModel, LoweredModel, PreparedModel

UNCHANGED = 20  # dB: a float model with less than this left is another one
AT_ONCE_BYTES = 512 * 2**20  # of one value, over all batches that run side by side


def prepare(captured: CapturedModel, sample: Sample) -> PreparedModel:
    """Decide the precision of every op, scale channels, place observers. The graph still computes in fp32.

    Args:
        sample: the first batches of the calibration data, at least one.

    Raises:
        CalibrationError: forward() fails on the sample.
        ModelError: there is nothing to quantize, or a batch normalization was folded along a wrong axis.
        ConfigError: an override matches nothing.
    """
    gm, runner, options = captured.gm, captured.runner, captured.options
    # First, so that a batch that does not fit changes nothing.
    runner.begin(gm, sample[0])
    if options.config.relu6_as_relu:
        _replace_relu6(captured, sample)
    values = run_batch(lambda *args, **kwargs: value_infos(gm, (args, kwargs)), sample[0])
    for node in captured.folded_linears:
        if node in values and len(values[node].shape) != 2:
            raise ModelError(
                f"The nn.BatchNorm1d after {where(node)} normalizes axis 1 of a {values[node].shape} tensor, which is "
                "not the feature axis. Move it into a submodule, and list that in leaf_modules."
            )
    if captured.left_linears:
        runner.run(FoldBatchNorm(is_matrix=lambda node: node in values and len(values[node].shape) == 2), gm)
    config = resolve_overrides(gm, options.config, options.part)
    layers = plan_overridden_layers(gm, config, options.backend)
    check_answered(options.config, config, layers)
    assignment = assign_precision(gm, options.backend, config, values, layers.reasons)
    if not assignment.int8_units and not layers.requests:
        raise ModelError(_nothing_to_quantize(assignment))
    runner.note(assignment.matched.refusals)
    log.info("precision: %d ops int8, %d fp32", len(assignment.int8_units), len(assignment.reasons))
    prepared = PreparedModel(gm, options, runner, captured.fp32_bytes, captured.interface, assignment, layers, sample)
    rescale_channels(prepared)
    runner.run(PlaceObservers(assignment), gm)
    return prepared


def _replace_relu6(captured: CapturedModel, sample: Sample) -> None:
    """Replace ReLU6 by ReLU, and warn if that makes a large difference."""
    gm = captured.gm
    (before,) = Stepper(gm, sample[:1]).finish()
    captured.runner.run(Relu6AsRelu(), gm)
    (after,) = Stepper(gm, sample[:1]).finish()
    left = worst_sqnr(before, after)
    log.info("relu6_as_relu: %.1f dB are left of the float model on the first batch", left)
    if left < UNCHANGED:
        warn(
            AccuracyWarning(
                f"relu6_as_relu=True: the model needs its ReLU6. With ReLU its output in fp32 agrees within {left:.1f} "
                "dB only, on the first calibration batch. Leave relu6_as_relu out."
            )
        )


def rescale_channels(prepared: PreparedModel) -> None:
    """Scale and shift channels across layers, as far as the configuration wants it. Exact."""
    gm, runner, assignment, sample = prepared.gm, prepared.runner, prepared.assignment, prepared.sample
    one_scale = only_with_one_scale(assignment)
    equalize = Choice(assignment, "equalize", one_scale)
    if equalize.leaves_any:
        runner.run(Equalize(sample[0], equalize), gm)
    smooth = Choice(assignment, "smooth", nothing_against)
    if smooth.leaves_any:
        runner.run(Smooth(assignment, sample, smooth), gm, wanted=smooth.decided)
    absorb = Choice(assignment, "absorb_bias", one_scale)
    if absorb.leaves_any:
        runner.run(AbsorbBias(sample, absorb, absorb.decided), gm)


def calibrate(prepared: PreparedModel, batches: Iterable[Batch], kept: list[Batch] | None = None) -> CalibratedModel:
    """Run ``batches`` through the observers; copies of them are added to ``kept``.

    Raises:
        CalibrationError: forward() fails on a batch, or gives NaN or inf.
    """
    for number, batch in enumerate(batches):
        if kept is not None:
            kept.append(copy_batch(batch))
        observe(prepared, batch, number)
    return calibrated(prepared)


def observe(prepared: PreparedModel, batch: Batch, number: int) -> Any:
    """Run a batch through the observers. Returns what forward() returns.

    Raises:
        CalibrationError: the graph does not hold for the batch, or forward() fails on it, or gives NaN or inf.
    """
    signature = Signature.of(prepared.gm)
    violation = prepared.interface.violation(signature.names, signature.bind(*batch))
    if violation:
        raise CalibrationError(f"Calibration batch {number}: {violation} Calibrate with calls of one kind.")
    return prepared.interface.rebuilt(run_batch(prepared.gm, batch, number))


def calibrated(prepared: PreparedModel) -> CalibratedModel:
    """``prepared``, whose observers have seen the data."""
    return prepared.as_stage(CalibratedModel)


def prepare_and_calibrate(
    model: nn.Module, calibration: object, options: Options, limit: int, kept: list[Batch] | None = None
) -> CalibratedModel:
    """All steps before freezing, on at most ``limit`` batches.

    Raises:
        CaptureError, ModelError, CalibrationError, ConfigError: see :func:`fxquant.compile`.
    """
    captured = capture_model(model, options)
    sample, batches = sampled(calibration, captured.signature, limit)
    captured = captured_on(captured, sample[0])  # the copy that it was compared with is freed here
    return calibrate(prepare(captured, sample), batches, kept)


def freeze(model: CalibratedModel) -> FrozenModel:
    """From a calibrated graph to a frozen one with adjusted weights and biases."""
    return adjust(round_values(model))


def round_values(model: CalibratedModel) -> FrozenModel:
    """From a calibrated graph to a frozen one, whose weights and biases are not adjusted yet."""
    gm, runner, assignment = model.gm, model.runner, model.assignment
    runner.run(ChooseRanges(assignment, _at_once(model)), gm)
    exact = copy_graph(gm)
    stop_observing(gm)
    runner.run(Freeze(assignment), gm)
    return model.as_stage(FrozenModel, exact=exact)


def adjust(frozen: FrozenModel) -> FrozenModel:
    """Adjust the weights and biases of a frozen graph to the error that rounding makes."""
    frozen.runner.run(LearnRounding(frozen.exact, frozen.assignment, _at_once(frozen)), frozen.gm)
    return adjust_biases(frozen)


def adjust_biases(frozen: FrozenModel) -> FrozenModel:
    """Adjust the biases only."""
    frozen.runner.run(CorrectBias(frozen.exact, frozen.assignment, _at_once(frozen)), frozen.gm)
    return frozen


def _at_once(model: PreparedModel) -> Sequence[Batch]:
    """The batches of the sample that may run side by side."""
    return model.sample[: max(1, at_once(model) // items_of(model.sample[0]))]


def at_once(model: PreparedModel) -> int:
    """How many items may run side by side, with a few of their largest values in memory."""
    sizes = [math.prod(v.shape) * v.dtype.itemsize for v in model.assignment.values.values()]
    return AT_ONCE_BYTES * items_of(model.sample[0]) // max([*sizes, 1])


def lower(frozen: FrozenModel) -> LoweredModel:
    """From a frozen graph to a verified, lowered one."""
    gm, runner, backend = frozen.gm, frozen.runner, frozen.options.backend
    maker = LayerMaker(backend)
    if frozen.layers.requests:
        runner.run(AbsorbRelus(frozen.layers), gm)
        runner.run(SwapLayers(maker, frozen.layers), gm)
    program = frozen.program
    lowered = backend.lower(program, maker.compiled)
    runner.snapshot("lower", lowered.executed.module)
    with stage("verify"):
        verify(lowered, frozen.assignment)
    report = StaticReport(program, frozen.assignment, frozen.layers, lowered, runner.notes)
    layouts = OutputLayouts.of(frozen.exact.module, frozen.sample[0])
    made = report.make(frozen.fp32_bytes, frozen.remark)
    return LoweredModel(program, lowered, made, runner.snapshots, layouts, frozen.interface)


def _nothing_to_quantize(assignment: Assignment) -> str:
    reasons = [f"  {n.name}: {r}" for n, r in assignment.reasons.items()][:10]
    listed = "\n" + "\n".join(reasons) if reasons else " It has no op that fxquant knows."
    return f"The model has nothing to quantize.{listed}"
