"""Integer weights and their scales."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..backends.base import Backend, Call, OpRule
from ..compiler.config import QuantConfig
from ..compiler.qdq import quantize_channels


@dataclass(frozen=True)
class QuantizedWeight:
    """``integers`` (int8, the weight's shape); ``scale`` and ``zero_point`` per index of ``axis``, or one."""

    integers: Tensor
    scale: Tensor
    zero_point: Tensor
    axis: int


@torch.no_grad()
def quantize_weight(
    call: Call, rule: OpRule, config: QuantConfig, backend: Backend, top: Tensor | None
) -> QuantizedWeight:
    """Quantize the weight of a layer as ``config`` says, within what the backend's kernels compute exactly.

    ``top``: the largest input integer per input channel (see :meth:`Backend.weight_scale_floor`).
    """
    assert call.module is not None and isinstance(call.module.weight, Tensor)
    weight, axis = call.module.weight.detach(), rule.channel_axis
    per_channel = config.weight_per_channel and rule.per_channel
    flat = weight.movedim(axis, 0).flatten(1) if per_channel else weight.reshape(1, -1)
    levels = 2 ** (config.weight_bits - 1)
    if config.weight_symmetric:
        scale = flat.abs().amax(1) / (levels - 1)
        floor = backend.weight_scale_floor(call, weight, top)
        if floor is not None:
            scale = torch.maximum(scale, floor if per_channel else floor.amax().reshape(1))
        low, zero_point = 1 - levels, torch.zeros_like(scale, dtype=torch.int64)
        scale = torch.where(scale > 0, scale, 1.0)
    else:
        # The raw integers meet the kernel, whatever the zero point: half of them must leave it room.
        levels = min(levels, levels if backend.target.vnni else 64)
        least, most = flat.amin(1).clamp_max(0), flat.amax(1).clamp_min(0)
        scale = (most - least) / (2 * levels - 1)
        scale = torch.where(scale > 0, scale, 1.0)
        low = -levels
        zero_point = (low - least / scale).round().clamp(low, levels - 1).to(torch.int64)
    integers = quantize_channels(weight, scale, zero_point, axis, low, levels - 1)
    return QuantizedWeight(integers, scale.float(), zero_point, axis)
