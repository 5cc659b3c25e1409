"""Several forms of one model, and the calls for which each may be trusted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...backends.base.dynamic_layer import DynamicLayer
from ..execution.inputs import Signature
from ..execution.interface import ANY_CALL, Interface
from ..execution.state import state_of
from ..numerics.metrics import sqnr

KINDS = 64  # of calls that are remembered; other calls run the model's own forward()
LEAST_SQNR = 20  # dB
CHANGES = 3


@dataclass(frozen=True)
class GraphForm:
    """A graph as it is called.

    Attributes:
        run: the graph.
        signature: of forward().
        interface: the calls that the graph holds for, and the structure of its results.
    """

    run: Callable[..., Any]
    signature: Signature
    interface: Interface

    def holds_for(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the graph computes this call."""
        if self.interface is ANY_CALL:
            return True
        try:
            inputs = self.signature.bind(args, kwargs)
        except TypeError:  # an input that the example did not have
            return False
        return self.interface.violation(self.signature.names, inputs) is None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.interface.rebuilt(self.run(*args, **kwargs))


class CallForms:
    """Runs a model by its own forward(), or by a faster form for the kinds of calls on which that gave the same.

    A traced graph has no branches and no state, and nothing shows beforehand whether the model needs any. So the first
    call of each kind (types, dtypes and numbers of axes of the inputs, values of plain numbers) runs forward() itself,
    and then the fastest form that gives the same is used. If forward() changes attributes or buffers of the model in
    several first calls in a row, it is always used.

    Args:
        model: runs its own forward().
        faster: the other forms, fastest first.
        alike: all forms have the same roundings, and must agree up to fp32 rounding; if not, within 20 dB.
    """

    def __init__(self, model: nn.Module, faster: Sequence[GraphForm], alike: bool = True) -> None:
        self.model, self.faster, self.alike = model, tuple(faster), alike
        self._chosen: dict[Any, Callable[..., Any]] = {}
        self._changes = 0  # first calls in a row that changed the model
        self._lock = threading.Lock()

    def on_copy(self, model: nn.Module) -> CallForms:
        """The same for a copy of the model. Forms are shared: they run only where the model keeps no state."""
        copied = CallForms(model, self.faster, self.alike)
        copied._chosen = {kind: model if form is self.model else form for kind, form in self._chosen.items()}
        return copied

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            kind = tuple(map(_kind, args)), tuple((k, _kind(v)) for k, v in sorted(kwargs.items()))
        except TypeError:  # an object of unknown content
            return self.model(*args, **kwargs)
        chosen = self._chosen.get(kind)
        if isinstance(chosen, GraphForm) and not chosen.holds_for(args, kwargs):
            return self.model(*args, **kwargs)
        if chosen is not None:
            return chosen(*args, **kwargs)
        with self._lock:
            return self._first(kind, args, kwargs)

    def _first(self, kind: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before = state_of(self.model)
        expected = self.model(*args, **kwargs)
        chosen: Callable[..., Any] = self.model
        if self.faster and before != state_of(self.model):
            self._changes += 1  # once may be an attribute that is set when it is first needed
            if self._changes == CHANGES:
                self.faster = ()
            return expected
        self._changes = 0
        for form in self.faster:
            try:
                agrees = form.holds_for(args, kwargs) and _same(form(*args, **kwargs), expected, self.alike)
            except Exception:  # the graph took another path than this call, or TorchScript does not know the type
                continue
            if agrees:
                chosen = form
                for layer in self.model.modules():
                    if isinstance(layer, DynamicLayer):
                        layer.release()
                break
        if len(self._chosen) < KINDS:
            self._chosen[kind] = chosen
        return expected


def _kind(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.dtype, value.dim()
    if isinstance(value, list | tuple):
        return type(value), tuple(map(_kind, value))
    if isinstance(value, dict):
        return dict, tuple((k, _kind(v)) for k, v in value.items())
    if isinstance(value, int | float | str | None):
        return type(value), value
    raise TypeError(f"{type(value).__name__} has no kind")


def _same(ours: Any, theirs: Any, alike: bool = True) -> bool:
    """Whether two outputs have the same type and, up to rounding, the same values."""
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, Tensor):
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype or ours.stride() != theirs.stride():
            return False
        if not ours.is_floating_point():
            return torch.equal(ours, theirs)
        if not alike:
            return sqnr([theirs], [ours]) > LEAST_SQNR
        return torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().amax()) if theirs.numel() else 0)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(_same(a, b, alike) for a, b in zip(ours, theirs, strict=True))
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(_same(ours[k], theirs[k], alike) for k in ours)
    try:
        return bool(ours == theirs)
    except Exception:
        return False
