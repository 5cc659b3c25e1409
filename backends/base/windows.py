"""The windows of convolution layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn


def halo(padding: str | Sequence[int], window: Sequence[int], dilation: Sequence[int]) -> list[tuple[int, int]]:
    """The elements of padding before and after each axis. With "same", an even window has one more after it."""
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, window, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    if padding == "valid":
        return [(0, 0)] * len(window)
    return [(int(p), int(p)) for p in padding]


def halo_of(conv: Any) -> list[tuple[int, int]]:
    """The :func:`halo` of a layer."""
    return halo(conv.padding, conv.kernel_size, conv.dilation)


def padding_of(conv: Any) -> tuple[int, ...]:
    """The padding of a convolution before each axis."""
    return tuple(low for low, _ in halo_of(conv))


def is_pointwise(module: nn.Module) -> bool:
    """Whether a convolution is a linear layer over the channels of each pixel."""
    conv: Any = module
    return all(k == 1 for k in conv.kernel_size) and conv.groups == 1 and not any(padding_of(conv))
