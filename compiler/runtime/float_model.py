"""The float model, for calls that the compiled one does not take."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..capture.copies import view_for_inference
from ..core.errors import FallbackWarning
from ..core.messages import warn
from .call_errors import is_of_a_kernel


class FloatModel:
    """Runs a float module in calls that its compiled form does not take, with one warning for each reason.

    Args:
        run: the float module.
        name: of it, for the warning.
    """

    def __init__(self, run: Callable[..., Any], name: str) -> None:
        self._run, self._name, self._warned = run, name, set[str]()

    def __call__(self, error: Exception, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The result for a call that was refused with ``error``, which is raised if the float module fails, too."""
        try:
            with torch.no_grad():
                result = self._run(*args, **kwargs)
        except Exception as failure:
            if not is_of_a_kernel(failure):
                raise
            raise error from None
        reason = re.sub(r"\d+", "", str(error))  # other sizes are no other reason
        if reason not in self._warned:
            self._warned.add(reason)
            warn(FallbackWarning(f"{self._name} runs in fp32 in such calls: {error}"))
        return result


class ViewedModel:
    """A view of the user's model, on the memory of its parameters. It refuses to run once they have changed.

    Args:
        model: the user's model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._module = view_for_inference(model)
        self._versions = self._now()

    def _now(self) -> list[int]:
        return [0 if p.is_inference() else p._version for p in self._module.parameters()]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._now() != self._versions:
            raise RuntimeError("the parameters of the model have changed since it was compiled")
        return self._module(*args, **kwargs)
