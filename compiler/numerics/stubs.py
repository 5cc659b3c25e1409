"""Modules that mark where a value enters and leaves an int8 region."""

from __future__ import annotations

from torch import Tensor, nn

from ..core.markers import Quantized
from .observer import Observer


class QuantStub(nn.Module, Quantized):
    """Where an fp32 value enters an int8 region. Observes the value."""

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self.observer = observer

    def forward(self, x: Tensor) -> Tensor:
        """Observe ``x`` and return it."""
        return self.observer(x)


class DeQuantStub(nn.Module, Quantized):
    """Where a value leaves an int8 region. Passes the value through."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x


def observer_of(module: nn.Module | None) -> Observer | None:
    """The observer that ``module`` is, or that it holds as a QuantStub; None for any other module."""
    observer = module.observer if isinstance(module, QuantStub) else module
    return observer if isinstance(observer, Observer) else None


def observers_of(module: nn.Module) -> dict[str, Observer]:
    """All observers in ``module``, by label."""
    return {o.label: o for m in module.modules() if (o := observer_of(m)) is not None}
