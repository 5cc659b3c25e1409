"""Compile with TorchScript, without showing its deprecation warnings."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn


def script(what: Any) -> Any:
    """Compile a function, or a module with its constants frozen. Raises whatever TorchScript raises."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        compiled = torch.jit.script(what)
        return torch.jit.freeze(compiled) if isinstance(what, nn.Module) else compiled
