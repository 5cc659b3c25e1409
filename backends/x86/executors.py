"""Forms in which a lowered graph is executed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ...compiler.values import bind_inputs
from ..base import Frozen
from .emitter import Emitter
from .engine import ONEDNN, running_engine

Run = Callable[..., Any]


def eager(emitter: Emitter, frozen: Frozen) -> Run:
    """Straight-line Python over bound op handles."""
    return _guarded(emitter.compile(), emitter.needs_onednn)


def torchscript(emitter: Emitter, frozen: Frozen) -> Run:
    """The same, traced on the example and frozen by TorchScript, whose deprecation warnings stay here."""

    class Lowered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, value in emitter.constants.items():
                if isinstance(value, nn.Module):
                    self.add_module(name, value)

        def forward(self, *args: Any) -> Any:
            return straight(*args)

    straight = emitter.compile()
    inputs = tuple(bind_inputs(frozen.module, frozen.example_args, frozen.example_kwargs))
    with warnings.catch_warnings(), running_engine(ONEDNN), torch.no_grad():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(Lowered().eval(), inputs, check_trace=False)
        script = torch.jit.freeze(traced)
        for _ in range(3):  # the profiling executor specialises on its first runs
            script(*inputs)
    return _guarded(script, emitter.needs_onednn)


def _guarded(run: Run, needs_onednn: bool) -> Run:
    if not needs_onednn:
        return run

    def with_engine(*args: Any, **kwargs: Any) -> Any:
        with running_engine(ONEDNN):
            return run(*args, **kwargs)

    return with_engine


EXECUTORS: dict[str, Callable[[Emitter, Frozen], Run]] = {"eager": eager, "torchscript": torchscript}
