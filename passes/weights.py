"""Integer weights and their scales."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..backends.base import Backend, IntegerWeight, OpRule, Output
from ..compiler.config import QuantConfig
from ..compiler.qdq import quantize_channels

# Shares of the largest weight that a scale may cover. Clipping more than this at 8 bits never pays.
SHRINK = {8: (1.0, 0.94), 7: (1.0, 0.95, 0.9)}
SHRINK_FEW_BITS = tuple(1.0 - 0.05 * i for i in range(15))


@dataclass(frozen=True)
class WeightGrid:
    """The integers a weight may take: from ``low`` to ``high``, at ``scale`` and ``zero_point`` along ``axis``."""

    scale: Tensor
    zero_point: Tensor
    axis: int
    low: int
    high: int

    def integers(self, weight: Tensor) -> Tensor:
        """``weight`` rounded to the nearest integers."""
        return quantize_channels(weight, self.scale, self.zero_point, self.axis, self.low, self.high)


def quantize_weight(
    layer: nn.Module,
    rule: OpRule,
    config: QuantConfig,
    backend: Backend,
    top: Tensor | None = None,
    name: str = "weight",
) -> IntegerWeight:
    """The parameter ``name`` of ``layer``, rounded to the nearest of its :func:`weight_grid`."""
    weight = getattr(layer, name).detach()
    grid = weight_grid(layer, rule, config, backend, weight, top)
    return IntegerWeight(grid.integers(weight), grid.scale, grid.zero_point, grid.axis)


@torch.no_grad()
def weight_grid(
    layer: nn.Module, rule: OpRule, config: QuantConfig, backend: Backend, weight: Tensor, top: Tensor | None
) -> WeightGrid:
    """Where the integers of ``weight`` lie, as ``config`` says, within what the kernels compute exactly.

    A symmetric scale is that of least squared error among several shares of the largest weight.

    Args:
        layer: the module that has it.
        rule: its row.
        config: granularity, symmetry and bits.
        backend: bounds the scales.
        weight: fp32, of the layer or what would take its place.
        top: the largest input integer per input channel (see :meth:`Backend.weight_scale_floor`).
    """
    axis, levels = rule.channel_axis, 2 ** (config.weight_bits - 1)
    flat = _rows(rule, config, weight)
    if rule.output is Output.WEIGHT_ONLY and config.weight_per_channel:
        return _affine_grid(flat, axis, levels)  # looked up, and stored with an offset: symmetry gains nothing
    if config.weight_symmetric:
        floor = scale_floor(layer, rule, config, backend, weight, top)
        scale = _least_error(flat, config.weight_bits, floor)
        zero_point = torch.zeros_like(scale, dtype=torch.int64)
        return WeightGrid(torch.where(scale > 0, scale, 1.0), zero_point, axis, 1 - levels, levels - 1)
    # The raw integers meet the kernel, whatever the zero point: half of them must leave it room.
    return _affine_grid(flat, axis, levels if backend.target.vnni else min(levels, 64))


def _affine_grid(flat: Tensor, axis: int, levels: int) -> WeightGrid:
    """From the least to the largest value of each row of ``flat``, zero included."""
    least, most = flat.amin(1).clamp_max(0), flat.amax(1).clamp_min(0)
    scale = (most - least) / (2 * levels - 1)
    scale = torch.where(scale > 0, scale, 1.0)
    zero_point = (-levels - least / scale).round().clamp(-levels, levels - 1).to(torch.int64)
    return WeightGrid(scale, zero_point, axis, -levels, levels - 1)


def widest_scale(
    layer: nn.Module, rule: OpRule, config: QuantConfig, backend: Backend, weight: Tensor, top: Tensor | None
) -> Tensor:
    """The symmetric scale that clips nothing: what :func:`weight_grid` would at most choose. Arguments as there."""
    return raised(largest_scale(rule, config, weight), scale_floor(layer, rule, config, backend, weight, top))


def largest_scale(rule: OpRule, config: QuantConfig, weight: Tensor) -> Tensor:
    """The symmetric scale at which the largest value of each row is the largest integer."""
    return _largest(_rows(rule, config, weight), config.weight_bits)


def raised(scale: Tensor, floor: Tensor | None) -> Tensor:
    """``scale``, or ``floor`` where that is larger."""
    return scale if floor is None else torch.maximum(scale, floor)


def _rows(rule: OpRule, config: QuantConfig, weight: Tensor) -> Tensor:
    """``weight`` with a row for all that shares a scale."""
    per_channel = config.weight_per_channel and rule.per_channel
    return weight.movedim(rule.channel_axis, 0).flatten(1) if per_channel else weight.reshape(1, -1)


def _largest(flat: Tensor, bits: int) -> Tensor:
    return flat.abs().amax(1) / (2 ** (bits - 1) - 1)


def scale_floor(
    layer: nn.Module, rule: OpRule, config: QuantConfig, backend: Backend, weight: Tensor, top: Tensor | None
) -> Tensor | None:
    """The smallest scale of each row that the backend's kernels compute exactly. Arguments as of :func:`weight_grid`.

    None: there is none.
    """
    floor = backend.weight_scale_floor(layer, weight, top, rounding=0.5 if config.rounding == "nearest" else 1.0)
    per_channel = config.weight_per_channel and rule.per_channel
    return floor if floor is None or per_channel else floor.amax().reshape(1)


def _least_error(flat: Tensor, bits: int, floor: Tensor | None) -> Tensor:
    """The symmetric scale of each row of ``flat`` with the least squared error, none below ``floor``."""
    largest = _largest(flat, bits)
    best, least = largest, torch.full_like(largest, torch.inf)
    for share in SHRINK.get(bits, SHRINK_FEW_BITS):
        scale = raised(largest * share, floor)
        steps = torch.where(scale > 0, scale, 1.0)[:, None]
        bound = 2 ** (bits - 1) - 1
        error = ((flat / steps).round_().clamp_(-bound, bound).mul_(steps) - flat).square_().sum(1)
        best = torch.where(error < least, scale, best)
        least = torch.minimum(error, least)
    return best
