"""The first stage: a float graph of the model, by either front end."""

from __future__ import annotations

from dataclasses import replace

from torch import fx, nn

from ...passes.rewrites.eliminate_noops import EliminateNoops
from ...passes.rewrites.fold_batchnorm import FoldBatchNorm
from ...passes.rewrites.relu6_as_relu import Relu6AsRelu
from ..capture.capture import capture
from ..capture.constants import evaluate_constants
from ..capture.copies import copy_for_inference
from ..capture.export import export
from ..capture.graph_checks import is_captured
from ..capture.normalize import normalize
from ..core.errors import CaptureError
from ..core.progress import stage
from ..core.tensors import total_bytes
from ..execution.batches import run_batch
from ..execution.interface import ANY_CALL, Interface
from ..execution.sample import Batch
from .options import Options
from .stages import CapturedModel, UntracedModel


def capture_model(model: nn.Module, options: Options) -> CapturedModel | UntracedModel:
    """Trace a copy of ``model``, and simplify the graph. Needs no data.

    Raises:
        CaptureError, ModelError, ConfigError: see :func:`fxquant.compile`.
    """
    size = model_bytes(model)
    with stage("capture"):
        try:
            captured = _simplified(capture(model, options.leaf_modules), options, size)
            return replace(captured, original=copy_for_inference(model))
        except CaptureError as error:
            if options.leaf_modules:  # torch.export knows none
                raise
            return UntracedModel(copy_for_inference(model), options, size, error)


def captured_on(model: CapturedModel | UntracedModel, batch: Batch) -> CapturedModel:
    """``model``, compared with forward() on ``batch``; captured by ``torch.export`` if ``torch.fx`` could not.

    Raises:
        CaptureError: neither can, or forward() keeps a state.
        CalibrationError: forward() fails on ``batch``.
    """
    if isinstance(model, CapturedModel):
        if model.original is None or is_captured(model.gm, model.original, batch):
            return replace(model, original=None)
        model = UntracedModel(model.original, model.options, model.fp32_bytes, _other_result(model.original))
        if model.options.leaf_modules:
            raise model.error
    run_batch(model.model, batch)  # what fails in fp32, too, is no fault of the capture
    with stage("capture"):
        try:
            gm, interface = export(model.model, batch)
        except CaptureError as error:
            raise CaptureError(f"{model.error}\n{error}") from error
        return _simplified(gm, model.options, model.fp32_bytes, interface)


def _other_result(model: nn.Module) -> CaptureError:
    return CaptureError(
        f"The graph of {type(model).__name__} does not compute what forward() computes. Write ops that change memory "
        "out of place (x = x + 1 instead of x += 1)."
    )


def _simplified(
    gm: fx.GraphModule, options: Options, fp32_bytes: int, interface: Interface = ANY_CALL
) -> CapturedModel:
    evaluate_constants(gm)
    captured = CapturedModel(gm, options, options.new_runner(), fp32_bytes, interface=interface)
    return simplify(captured, FoldBatchNorm(), EliminateNoops())


def simplify(captured: CapturedModel, fold: FoldBatchNorm, eliminate: EliminateNoops) -> CapturedModel:
    """One spelling per op, and the rewrites that need no data."""
    gm, runner = captured.gm, captured.runner
    normalize(gm)
    runner.snapshot("capture", gm)
    runner.run(fold, gm)
    runner.run(eliminate, gm)
    if captured.options.config.relu6_as_relu:
        runner.run(Relu6AsRelu(), gm)
    return replace(captured, folded_linears=tuple(fold.linears))


def model_bytes(model: nn.Module) -> int:
    """Bytes of the parameters and buffers of ``model``."""
    return total_bytes((*model.parameters(), *model.buffers()))
