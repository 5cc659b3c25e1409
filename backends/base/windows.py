"""The windows of convolution layers."""

from __future__ import annotations

from typing import Any

from torch import nn


def padding_of(conv: Any) -> tuple[int, ...]:
    """The padding of a convolution in integers, one for each axis of its window."""
    if conv.padding == "same":  # refused if the two sides differ
        return tuple(d * (k - 1) // 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    return (0,) * len(conv.kernel_size) if conv.padding == "valid" else tuple(conv.padding)


def is_pointwise(module: nn.Module) -> bool:
    """Whether a convolution is a linear layer over the channels of each pixel."""
    conv: Any = module
    return all(k == 1 for k in conv.kernel_size) and conv.groups == 1 and not any(padding_of(conv))
