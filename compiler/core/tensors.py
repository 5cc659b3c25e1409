"""Tensors in nested values, and their sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .errors import CallError


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors in ``value``, through any nesting of lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for v in value for t in tensors_of(v)] if isinstance(value, list | tuple) else []


def check_dense(value: Tensor, name: str) -> None:
    """Refuse a tensor whose memory kernels cannot read.

    Args:
        name: of the input.

    Raises:
        CallError: names the input.
    """
    if value.device.type != "cpu" or value.layout != torch.strided:
        kind = str(value.layout).removeprefix("torch.")
        raise CallError(f"Input '{name}' must be a dense tensor on the CPU, got a {kind} tensor on '{value.device}'.")


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """``value`` with ``function`` of each tensor in it, in the order of :func:`tensors_of`."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        mapped = {k: map_tensors(v, function) for k, v in value.items()}
        return mapped if type(value) is dict else type(value)(mapped)
    if isinstance(value, list | tuple):
        items = [map_tensors(v, function) for v in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def is_mask(tensor: Tensor) -> bool:
    """Whether ``tensor`` holds -inf, as masks that are added to scores do, and neither NaN nor inf."""
    return tensor.is_floating_point() and bool((tensor == -math.inf).any() and (tensor < math.inf).all())


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of the values of ``tensor``."""
    return tensor.numel() * tensor.element_size()


def total_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the values of all ``tensors``."""
    return sum(map(tensor_bytes, tensors))
