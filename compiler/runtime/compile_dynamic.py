"""From a float module to a callable one with dynamic layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..core.config import DYNAMIC_DTYPES
from ..core.errors import ConfigError
from ..execution.inputs import Signature
from ..workflows.dynamic import quantize_dynamic
from ..workflows.options import Options
from .call_forms import CallForms, GraphForm
from .compiled import Compiled
from .quantized_module import QuantizedModule


def compile_dynamic(model: nn.Module, options: Options, dtype: torch.dtype, executor: str) -> QuantizedModule:
    """Quantize the weights of ``model`` to ``dtype``; its graph runs in the forms that ``executor`` allows.

    Raises:
        ConfigError: no such dtype, or ``executor`` needs a graph and forward() cannot be traced.
    """
    if dtype not in DYNAMIC_DTYPES.values():
        raise ConfigError(f"dtype is {dtype!r}. Valid: {', '.join(map(str, DYNAMIC_DTYPES.values()))}.")
    done = quantize_dynamic(model, options, dtype)
    run: Callable[..., Any] = done.tree
    if done.graph is not None:
        alike = done.rounds_alike and options.backend.same_roundings
        forms = options.backend.graph_forms(done.graph)
        run = CallForms(done.tree, [GraphForm(f, Signature.of(done.graph), done.interface) for f in forms], alike)
    elif executor == "torchscript":
        raise ConfigError(f"executor='torchscript' needs a graph, and there is none: {done.untraced}. Use 'auto'.")
    return QuantizedModule(Compiled(run, done.report, done.graph, done.tree, done.program, done.snapshots))
