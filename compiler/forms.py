"""Several forms of one model, and which of them may be trusted."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .lockstep import sqnr

KINDS = 64  # of calls that are remembered; others run the model's own forward
LEAST_SQNR = 20  # dB


class Forms:
    """A model's own forward, and faster forms of it, each used for calls of a kind on which it gave the same.

    A traced graph has no branches and no state, and nothing shows beforehand that the model needs none. So the first
    call of each kind (types, dtypes and numbers of axes of what is given, values of plain numbers) runs the model as
    it is, then the fastest form that gives the same is kept. A model whose forward changes its attributes or buffers
    runs as it is.

    Args:
        model: runs its own forward.
        faster: the other forms, fastest first.
        alike: whether all forms round alike, and must agree up to fp32 rounding; if not, within 20 dB.
    """

    def __init__(self, model: nn.Module, faster: Sequence[Callable[..., Any]], alike: bool = True) -> None:
        self.model, self.faster, self.alike = model, tuple(faster), alike
        self._chosen: dict[Any, Callable[..., Any]] = {}
        self._lock = threading.Lock()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            kind = tuple(map(_kind, args)), tuple((k, _kind(v)) for k, v in sorted(kwargs.items()))
        except TypeError:  # an object that anything may be in
            return self.model(*args, **kwargs)
        chosen = self._chosen.get(kind)
        if chosen is not None:
            return chosen(*args, **kwargs)
        with self._lock:
            return self._first(kind, args, kwargs)

    def _first(self, kind: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before = _state(self.model)
        expected = self.model(*args, **kwargs)
        chosen: Callable[..., Any] = self.model
        if before != _state(self.model):
            self.faster = ()
        for form in self.faster:
            try:
                agrees = _same(form(*args, **kwargs), expected, self.alike)
            except Exception:  # the graph took a way that this call does not, or TorchScript knows no such type
                continue
            if agrees:
                chosen = form
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


def _state(model: nn.Module) -> list[Any]:
    """What tells whether a forward has changed the model: identities of attributes, versions of tensors."""
    found: list[Any] = []
    for module in model.modules():
        for name, value in (*vars(module).items(), *module._buffers.items(), *module._parameters.items()):
            found.append((name, _mark(value)))
    return found


def _mark(value: Any) -> Any:
    """What changes when ``value`` is replaced, written to, or, a container, gets other items."""
    if isinstance(value, Tensor):
        return id(value), 0 if value.is_inference() else value._version
    if isinstance(value, list | tuple | set | deque):
        return id(value), tuple(map(_mark, value))
    if isinstance(value, dict):
        return id(value), tuple((id(k), _mark(v)) for k, v in value.items())
    return id(value)


def _same(ours: Any, theirs: Any, alike: bool = True) -> bool:
    """Whether two outputs are the same in type and, up to rounding, in value."""
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
