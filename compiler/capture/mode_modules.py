"""Modules whose output depends on the training mode of another module, their owner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Dropout(nn.Module):
    """A dropout function in the forward() of a module: drops values while that module is in training mode."""

    def __init__(self, owner: nn.Module, drop: Callable[..., Tensor], p: float) -> None:
        super().__init__()
        self._owner, self.drop, self.p = (owner,), drop, p  # in a tuple: no submodule

    def forward(self, x: Tensor) -> Tensor:
        """``x``, in training mode with values dropped."""
        return self.drop(x, self.p, self._owner[0].training)


class ByMode(nn.Module):
    """An argument in the forward() of a module that depends on the training mode of that module."""

    def __init__(self, owner: nn.Module, training: Any, evaluating: Any) -> None:
        super().__init__()
        self._owner, self.training_value, self.evaluating_value = (owner,), training, evaluating

    def forward(self) -> Any:
        """The value in the present mode."""
        return self.training_value if self._owner[0].training else self.evaluating_value
