"""Copies of models, and their training modes."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

from torch import nn

from ..core.errors import ModelError


def copy_model(model: nn.Module, share_parameters: bool = False) -> nn.Module:
    """A deep copy of ``model``.

    Args:
        share_parameters: let the copy have the parameters of ``model`` itself.

    Raises:
        ModelError: the model cannot be copied.
    """
    memo: dict[int, Any] = {id(p): p for p in model.parameters()} if share_parameters else {}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be deep-copied ({error}). fxquant works on a copy: make "
            "copy.deepcopy(model) work, for example by detaching tensors that the modules keep."
        ) from error


@contextlib.contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """At the end, put every module of ``model`` back into the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
