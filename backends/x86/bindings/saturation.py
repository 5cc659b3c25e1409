r"""Weights that 16-bit pair sums cannot saturate.

Without VNNI the int8 kernels of x86 use ``vpmaddubsw``: the products of neighboring inputs (uint8) and weights (int8)
are added in pairs, in 16 bits, with saturation. The guide of oneDNN ("Nuances of int8 computations") and torch.ao give
up a bit of every activation. Less is enough: a pair is exact as long as

.. math:: \sum_{j \in pair} \max(w_j u_j^{min}, w_j u_j^{max}) \le 32767 \cdot s

and the same holds for the minimum, where ``w`` is the fp32 weight, ``s`` its scale and ``u`` the input integers. The
largest integer that each input channel reached in calibration (with headroom) bounds ``u``. The scale of an output
channel grows only if one of its own pairs would saturate.

Pairs are neighbors along the input channels. If the number of channels per group is odd (images with three channels,
depthwise kernels), they may also be neighbors along the flattened window. The bound holds for both, as fbgemm and
oneDNN use both (``tests/backends/x86/test_saturation.py`` feeds integers to the kernels).
"""

from __future__ import annotations

import torch
from torch import Tensor

LIMIT = 32767
HEADROOM = 1.1


def scale_floor(weight: Tensor, axis: int, groups: int, top: Tensor | None, rounding: float = 0.5) -> Tensor:
    """The smallest exact scale per output channel: ``(outputs,)``.

    Args:
        weight: fp32; ``axis`` is that of the output channels, the other of the first two that of the inputs.
        groups: of the convolution.
        top: the largest input integer per input channel; None: 255 everywhere.
        rounding: how many steps an integer may be away from its weight.
    """
    w = weight.movedim(axis, 0).flatten(2) if weight.dim() > 2 else weight[:, :, None]
    # The inputs of a transposed convolution lie along the weight's first axis, which is not regrouped here.
    product = w * _bound(None if axis == 1 else top, w.shape[0], w.shape[1], groups)
    # By channel: neighboring channels of a pixel. By window: the flattened (pixel, channel) order.
    layouts = [product.transpose(1, 2).flatten(0, 1).reshape(w.shape[0], -1, w.shape[1])]
    if w.shape[1] % 2:
        layouts.append(product.transpose(1, 2).flatten(1)[:, None])
    floors = [_pair_extreme(layout) for layout in layouts]
    # Both weights of a pair may be rounded up, and meet the largest input.
    return torch.stack(floors).amax(0) / (LIMIT - 2 * 255 * rounding)


def _bound(top: Tensor | None, outputs: int, channels: int, groups: int) -> Tensor:
    """The largest input integer for each weight: ``(outputs or 1, channels per group, 1)``."""
    if top is None or top.numel() != channels * groups:
        return torch.full((1, channels, 1), 255.0)
    roomy = (top * HEADROOM).clamp(0, 255).reshape(groups, channels)
    return roomy.repeat_interleave(outputs // groups, 0)[:, :, None]


def _pair_extreme(products: Tensor) -> Tensor:
    """The largest magnitude of a pair sum, for inputs from 0 to their bounds; pairs are along the last axis."""
    if products.shape[-1] % 2:
        products = torch.nn.functional.pad(products, (0, 1))
    pairs = products.unflatten(-1, (-1, 2))
    highest = pairs.clamp_min(0).sum(-1).flatten(1).amax(1)
    lowest = pairs.clamp_max(0).sum(-1).flatten(1).amin(1)
    return torch.maximum(highest, -lowest)
