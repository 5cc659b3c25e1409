"""Which module of a model ``torch.fx`` captures wrongly."""

from __future__ import annotations

from torch import fx, nn

from ..core.errors import CaptureError
from ..execution.sample import Batch
from .calls import watch_calls
from .capture import capture
from .copies import copy_for_inference
from .graph_checks import is_captured, refuse_state


def faulty_module(model: nn.Module, batch: Batch) -> str:
    """The path of the smallest module whose graph does not compute what its forward() computes.

    "" if that is ``model`` itself.

    Args:
        model: whose graph does not; a copy for inference.
        batch: arguments of its forward().
    """
    try:
        _, calls, _ = watch_calls(copy_for_inference(model), batch)
    except Exception:
        return ""
    for path, (call, *_) in calls.items():
        module = model.get_submodule(path)
        if not fx.Tracer().is_leaf_module(module, path) and not _is_captured(module, call):
            return ".".join(filter(None, (path, faulty_module(module, call))))
    return ""


def _is_captured(module: nn.Module, call: Batch) -> bool:
    try:
        copied = copy_for_inference(module)
        refuse_state(copied, call)
        return is_captured(capture(module), copied, call)
    except CaptureError:
        return False
