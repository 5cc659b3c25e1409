"""The first stage: a float graph of the model, by either front end."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from torch import fx, nn

from ...passes.rewrites.eliminate_noops import EliminateNoops
from ...passes.rewrites.fold_batchnorm import FoldBatchNorm
from ..capture.capture import capture
from ..capture.constants import evaluate_constants
from ..capture.copies import copy_for_inference
from ..capture.export import export
from ..capture.faults import faulty_module
from ..capture.graph_checks import is_captured, refuse_state
from ..capture.normalize import normalize
from ..core.errors import CaptureError
from ..core.progress import stage
from ..core.tensors import total_bytes
from ..execution.batches import run_batch
from ..execution.inputs import Signature
from ..execution.interface import ANY_CALL, Interface, kind_of
from ..execution.sample import Batch
from ..execution.state import SavedState
from .options import Options
from .stages import CapturedModel, UntracedModel

_ATTENTIONS = (
    nn.MultiheadAttention,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.Transformer,
)
_OTHER_RESULT = (
    "The graph of {} does not compute what forward() computes. Write ops that change memory out of place (x = x + 1 "
    "instead of x += 1)."
)


def capture_model(model: nn.Module, options: Options) -> CapturedModel | UntracedModel:
    """Trace a copy of ``model``, and simplify the graph. Needs no data.

    Raises:
        ModelError, ConfigError: see :func:`fxquant.compile`.
    """
    size = model_bytes(model)
    with stage("capture"):
        try:
            captured = _simplified(capture(model, options.leaf_modules), options, size)
            return replace(captured, original=copy_for_inference(model))
        except CaptureError as error:
            reason, path = str(error), error.path
    # Not in the handler: the error holds all that was traced.
    return UntracedModel(copy_for_inference(model), options, size, reason, path)


def captured_on(model: CapturedModel | UntracedModel, batch: Batch) -> CapturedModel:
    """``model``, compared with forward() on ``batch``; captured by ``torch.export`` if ``torch.fx`` could not.

    Raises:
        CaptureError: neither can, or forward() keeps a state.
        CalibrationError: forward() fails on ``batch``.
        ContractError: a pass broke its contract.
    """
    if isinstance(model, CapturedModel) and model.original is None:
        model.runner.begin(model.gm, batch)
        return model
    state = SavedState(model.float_copy)
    try:
        refuse_state(model.float_copy, batch, shown=not model.options.part.whole)
        return _captured_on(model, batch)
    except CaptureError:
        state.restore()
        raise


def _captured_on(model: CapturedModel | UntracedModel, batch: Batch) -> CapturedModel:
    if isinstance(model, CapturedModel):
        assert model.original is not None
        model.runner.begin(model.gm, batch)
        if is_captured(model.gm, model.original, batch):
            signature = Signature.of(model.gm)
            read = {n.target for n in model.gm.graph.nodes if n.op == "placeholder" and n.users}
            inputs = zip(signature.names, signature.bind(*batch), strict=True)
            kinds = {name: kind_of(value) for name, value in inputs if name in read}
            return _opened(replace(model, interface=Interface(kinds=kinds)), model.original, batch)
        reason = _OTHER_RESULT.format(type(model.original).__name__)
        model = UntracedModel(model.original, model.options, model.fp32_bytes, reason, None)
    run_batch(model.model, batch)  # what fails in fp32, too, is no fault of the capture
    try:
        return _exported(model.model, model, batch)
    except CaptureError as error:
        path = faulty_module(model.model, batch) if model.path is None else model.path
        raise CaptureError(f"{model.error}\n{error}", path) from error


def _opened(model: CapturedModel, original: nn.Module, batch: Batch) -> CapturedModel:
    """``model``, captured by ``torch.export`` if ``torch.fx`` has left attentions whole, whose layers are inside."""
    if has_whole_attention(model.gm):
        with contextlib.suppress(CaptureError):
            return _exported(original, model, batch)
    return replace(model, original=None)


def has_whole_attention(gm: fx.GraphModule) -> bool:
    """Whether ``torch.fx`` has left an attention of torch whole, whose layers are inside."""
    targets = {n.target for n in gm.graph.nodes if n.op == "call_module"}
    return any(isinstance(gm.get_submodule(str(t)), _ATTENTIONS) for t in targets)


def _exported(module: nn.Module, model: CapturedModel | UntracedModel, batch: Batch) -> CapturedModel:
    if model.options.leaf_modules:
        raise CaptureError("torch.export is not tried, as it knows no leaf_modules.")
    with stage("capture"):
        gm, interface = export(module, batch)
        return _simplified(gm, model.options, model.fp32_bytes, interface)


def _simplified(
    gm: fx.GraphModule, options: Options, fp32_bytes: int, interface: Interface = ANY_CALL
) -> CapturedModel:
    evaluate_constants(gm)
    captured = CapturedModel(gm, options, options.new_runner(), fp32_bytes, interface=interface)
    return simplify(captured, FoldBatchNorm(is_matrix=lambda node: False), EliminateNoops(), at_owners=True)


def simplify(
    captured: CapturedModel, fold: FoldBatchNorm, eliminate: EliminateNoops, at_owners: bool = False
) -> CapturedModel:
    """One spelling per op, and the rewrites that need no data."""
    gm, runner = captured.gm, captured.runner
    normalize(gm, at_owners)
    runner.snapshot("capture", gm)
    runner.run(fold, gm)
    runner.run(eliminate, gm)
    return replace(captured, folded_linears=tuple(fold.linears), left_linears=tuple(fold.left))


def model_bytes(model: nn.Module) -> int:
    """Bytes of the parameters and buffers of ``model``."""
    return total_bytes((*model.parameters(), *model.buffers()))
