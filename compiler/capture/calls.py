"""Which modules a forward() calls itself, and with what."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

from torch import nn

from ..execution.batches import run_batch
from ..execution.sample import Batch, copy_batch

Calls = dict[str, list[Batch]]


def watch_calls(model: nn.Module, batch: Batch, number: int = 0) -> tuple[Any, Calls]:
    """What ``model`` returns for ``batch``, and copies of the inputs of the modules that forward() calls, by path.

    Not of those that they call in turn. ``number`` is that of the batch.

    Raises:
        CalibrationError: forward() fails.
    """
    found: Calls = {}
    depth, own = 0, threading.get_ident()

    def enter(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal depth
        if threading.get_ident() == own:
            depth += 1
            if depth == 1:
                found.setdefault(path, []).append(copy_batch((args, kwargs)))

    def leave(*_: Any) -> None:
        nonlocal depth
        if threading.get_ident() == own:
            depth -= 1

    hooks: list[Any] = []
    try:
        for path, module in model.named_modules():
            if path:
                hooks.append(module.register_forward_pre_hook(partial(enter, path), with_kwargs=True, prepend=True))
                hooks.append(module.register_forward_hook(leave, always_call=True))
        return run_batch(model, batch, number), found
    finally:
        for hook in hooks:
            hook.remove()
