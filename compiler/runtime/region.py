"""A module that is compiled on its own, and called by Python code of the user."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

from torch import nn

from ..core.errors import CallError, FxquantError
from ..core.tensors import tensors_of
from .compiled import Compiled
from .float_model import FloatModel


class Observing(Protocol):
    """What runs a module in fp32 and observes it, and is then converted."""

    __call__: Callable[..., Any]

    @property
    def observed(self) -> bool:
        """Whether it has seen data."""

    @property
    def island(self) -> str:
        """Why all of the module has to stay Python; "" if it does not."""

    def takes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the graph holds for such a call."""

    def convert(self) -> Compiled: ...


class Region:
    """Stands in for the forward() of a module: observes its calls, and runs the compiled module from :meth:`freeze` on.

    A call that the compiled module does not take runs the float module, with one warning.

    Args:
        path: of the module in the model.
        module: whose forward() it replaces.
        observe: makes what observes ``module``.
    """

    def __init__(self, path: str, module: nn.Module, observe: Callable[[nn.Module], Observing]) -> None:
        self.path, self.module = path, module
        self.compiled: Compiled | None = None
        self.reason = "it was not called in calibration"
        self._float = FloatModel(self._run_float, f"'{path}'")
        self._observing: Observing | None = _without_hooks(module, observe)
        vars(module)["forward"] = self

    @property
    def island(self) -> str:
        """Why the module has to stay Python; "" if it does not."""
        return self._observing.island if self._observing is not None else ""

    def removed(self) -> None:
        """Let the module run its own forward() again."""
        del vars(self.module)["forward"]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if any(not t.numel() for t in tensors_of([args, kwargs])):
            return self._run_float(*args, **kwargs)  # nothing to compute, and nothing to observe
        if self.compiled is not None:
            try:
                return self.compiled.run(*args, **kwargs)
            except (CallError, TypeError) as error:
                return self._float(error, args, kwargs)
        if self._observing is not None:
            try:
                if self._observing.takes(args, kwargs):
                    return self._observing(*args, **kwargs)
            except FxquantError as error:
                self._observing, self.reason = None, _reason(error)
        return self._run_float(*args, **kwargs)

    def _run_float(self, *args: Any, **kwargs: Any) -> Any:
        return type(self.module).forward(self.module, *args, **kwargs)

    def freeze(self) -> None:
        """End calibration. What cannot be compiled stays in fp32, with a reason."""
        observing, self._observing = self._observing, None
        if observing is None or not observing.observed:
            return
        try:
            self.compiled = observing.convert()
        except FxquantError as error:
            self.reason = _reason(error)

    def __deepcopy__(self, memo: dict[int, Any]) -> Region:
        copied = Region.__new__(Region)
        memo[id(self)] = copied
        copied.__dict__.update(self.__dict__)
        copied._float = FloatModel(copied._run_float, f"'{self.path}'")
        copied.module = copy.deepcopy(self.module, memo)
        if self.compiled is not None:
            copied.compiled = self.compiled.copied(memo)
        return copied


def _without_hooks(module: nn.Module, observe: Callable[[nn.Module], Observing]) -> Observing:
    """``observe(module)`` for its forward() alone: its hooks run around whatever stands in for that."""
    hooks = module._forward_pre_hooks, module._forward_hooks
    module._forward_pre_hooks, module._forward_hooks = OrderedDict(), OrderedDict()
    try:
        return observe(module)
    finally:
        module._forward_pre_hooks, module._forward_hooks = hooks


def _reason(error: FxquantError) -> str:
    return "; ".join(line.strip() for line in str(error).splitlines()[:3])
