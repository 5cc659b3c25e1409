"""Integer weights and their scales."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...backends.base.backend import Backend, binding_of
from ...backends.base.op import OpRow, Output
from ...backends.base.weights import IntegerWeight
from ...backends.base.windows import is_pointwise
from ...compiler.core.config import QuantConfig
from ...compiler.numerics.quantize import quantize_channels

# Shares of the largest weight that a scale may cover. Clipping more than this at 8 bits never pays.
SHRINK = {8: (1.0, 0.94), 7: (1.0, 0.95, 0.9)}
SHRINK_FEW_BITS = tuple(1.0 - 0.05 * i for i in range(15))


@dataclass(frozen=True)
class LayerWeight:
    """A weight to be quantized, and what decides its scales.

    Attributes:
        layer: the float module that has it.
        row: the row of the layer.
        config: granularity, symmetry and bits.
        backend: bounds the scales.
    """

    layer: nn.Module
    row: OpRow
    config: QuantConfig
    backend: Backend

    @property
    def per_channel(self) -> bool:
        """Whether each output channel has a scale."""
        return self.config.weight_per_channel and binding_of(self.backend, self.row).per_channel

    def refuse_groups(self, name: str) -> str:
        """Why the inputs of the parameter ``name`` have no scales by group; "" if they have, or none are asked for."""
        size, weight = self.config.group_size, self.layer.get_parameter(name)
        inputs = weight[0].numel()
        if size is None:
            return ""
        if hasattr(self.layer, "kernel_size") and not is_pointwise(self.layer):
            return f"no kernel for windows, groups or padding with group_size={size}"
        if not binding_of(self.backend, self.row).group_scales:
            return f"no kernel for {self.row.name} with group_size={size}"
        return f"its {inputs} inputs are no multiple of group_size={size}" if inputs % size else ""


BLOCK = 2**18  # weights


@dataclass(frozen=True)
class WeightGrid:
    """The integers that a weight may take: ``low`` to ``high``, with ``scale`` and ``zero_point`` along ``axis``."""

    scale: Tensor
    zero_point: Tensor
    axis: int
    low: int
    high: int

    def integers(self, weight: Tensor) -> Tensor:
        """``weight`` rounded to the nearest integers."""
        return quantize_channels(weight, self.scale, self.zero_point, self.axis, self.low, self.high)


def quantize_weight(
    of: LayerWeight, top: Tensor | None = None, name: str = "weight", dynamic: bool = False
) -> IntegerWeight:
    """The parameter ``name`` of a layer, rounded to the nearest integers of its :func:`weight_grid`.

    Args:
        of, top: see there.
        name: of the parameter.
        dynamic: it is a dynamic layer, in which groups of inputs may have scales.
    """
    weight, size = getattr(of.layer, name).detach(), of.config.group_size
    if size is None or not dynamic or of.refuse_groups(name):
        grid = weight_grid(of, weight, top)
        return IntegerWeight(grid.integers(weight), grid.scale, grid.zero_point, grid.axis)
    groups = weight.reshape(-1, size)
    grid = weight_grid(of, groups, top)
    blocks = (len(weight), -1) if len(groups) > len(weight) else (-1,)
    scale, zero_point = (t.view(blocks) for t in (grid.scale, grid.zero_point))
    return IntegerWeight(grid.integers(groups).view(weight.shape), scale, zero_point, grid.axis)


@torch.no_grad()
def weight_grid(of: LayerWeight, weight: Tensor, top: Tensor | None) -> WeightGrid:
    """The integers for ``weight``, as the configuration says, within what the kernels compute exactly.

    A symmetric scale is the one of least squared error among several shares of the largest weight.

    Args:
        of: the layer.
        weight: fp32, the weight of the layer or one in its place.
        top: the largest input integer per input channel (see :meth:`Backend.weight_scale_floor`).
    """
    axis, levels = of.row.channel_axis, 2 ** (of.config.weight_bits - 1)
    flat = _rows(of, weight)
    if of.row.output is Output.WEIGHT_ONLY and of.config.weight_per_channel:
        return _affine_grid(flat, axis, levels)  # rows are stored with an offset: symmetry gains nothing
    if of.config.weight_symmetric:
        scale = _least_error(flat, of.config.weight_bits, scale_floor(of, weight, top))
        zero_point = torch.zeros_like(scale, dtype=torch.int64)
        return WeightGrid(torch.where(scale > 0, scale, 1.0), zero_point, axis, 1 - levels, levels - 1)
    limit = of.backend.affine_weight_limit
    return _affine_grid(flat, axis, levels if limit is None else min(levels, limit))


def _affine_grid(flat: Tensor, axis: int, levels: int) -> WeightGrid:
    """From the least to the largest value of each row of ``flat``, zero included."""
    least, most = flat.amin(1).clamp_max(0), flat.amax(1).clamp_min(0)
    scale = (most - least) / (2 * levels - 1)
    scale = torch.where(scale > 0, scale, 1.0)
    zero_point = (-levels - least / scale).round().clamp(-levels, levels - 1).to(torch.int64)
    return WeightGrid(scale, zero_point, axis, -levels, levels - 1)


def widest_scale(of: LayerWeight, weight: Tensor, top: Tensor | None) -> Tensor:
    """The symmetric scale that clips nothing: the largest that :func:`weight_grid` chooses. Arguments as there."""
    return raised(largest_scale(of, weight), scale_floor(of, weight, top))


def largest_scale(of: LayerWeight, weight: Tensor) -> Tensor:
    """The symmetric scale for which the largest value of each row is the largest integer."""
    return _largest(_rows(of, weight), of.config.weight_bits)


def raised(scale: Tensor, floor: Tensor | None) -> Tensor:
    """``scale``, or ``floor`` where that is larger."""
    return scale if floor is None else torch.maximum(scale, floor)


def scale_floor(of: LayerWeight, weight: Tensor, top: Tensor | None) -> Tensor | None:
    """The smallest scale of each row that the kernels compute exactly; None: no limit. As of :func:`weight_grid`."""
    rounding = 0.5 if of.config.rounding == "nearest" else 1.0
    floor = of.backend.weight_scale_floor(of.layer, weight, top, rounding=rounding)
    return floor if floor is None or of.per_channel else floor.amax().reshape(1)


def _rows(of: LayerWeight, weight: Tensor) -> Tensor:
    """``weight`` with one row for all values that share a scale."""
    return weight.movedim(of.row.channel_axis, 0).flatten(1) if of.per_channel else weight.reshape(1, -1)


def _largest(flat: Tensor, bits: int) -> Tensor:
    return flat.abs().amax(1) / (2 ** (bits - 1) - 1)


def _least_error(flat: Tensor, bits: int, floor: Tensor | None) -> Tensor:
    """The symmetric scale of each row of ``flat`` with the least squared error, none below ``floor``."""
    if len(flat) > 1 and flat.numel() > BLOCK:  # in blocks that stay in the cache, and take little memory
        rows = max(1, BLOCK // flat.shape[1])
        floors = [None] * len(flat) if floor is None else floor.expand(len(flat)).split(rows)
        blocks = zip(flat.split(rows), floors, strict=False)
        return torch.cat([_least_error(block, bits, below) for block, below in blocks])
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
