"""Which modules a forward() calls itself, and with what."""

from __future__ import annotations

import threading
from collections.abc import Collection
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..core.tensors import tensors_of
from ..execution.batches import run_batch
from ..execution.sample import Batch, copy_batch

Calls = dict[str, list[Batch]]


def watch_calls(
    model: nn.Module, batch: Batch, number: int = 0, islands: Collection[str] = ()
) -> tuple[Any, Calls, set[str]]:
    """What ``model`` returns for ``batch``, and what it calls.

    Args:
        number: of the batch.
        islands: paths of modules that are part of the forward() that calls them.

    Returns:
        The result; copies of the inputs of the modules that forward() calls, by path, not of those that they call in
        turn; and those of them that change an input in place.

    Raises:
        CalibrationError: forward() fails.
    """
    found: Calls = {}
    writing: set[str] = set()
    inside: list[tuple[str, list[tuple[Tensor, int]]]] = []
    own = threading.get_ident()

    def enter(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if threading.get_ident() != own or path in islands:
            return
        given = [(t, t._version) for t in tensors_of([args, kwargs]) if not t.is_inference()] if not inside else []
        if not inside:
            found.setdefault(path, []).append(copy_batch((args, kwargs)))
        inside.append((path, given))

    def leave(path: str, *_: Any) -> None:
        if threading.get_ident() != own or path in islands:
            return
        entered, given = inside.pop()
        if any(tensor._version != version for tensor, version in given):
            writing.add(entered)

    hooks: list[Any] = []
    try:
        for path, module in model.named_modules():
            if path:
                hooks.append(module.register_forward_pre_hook(partial(enter, path), with_kwargs=True, prepend=True))
                hooks.append(module.register_forward_hook(partial(leave, path), always_call=True))
        return run_batch(model, batch, number), found, writing
    finally:
        for hook in hooks:
            hook.remove()
