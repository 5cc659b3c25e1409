"""The module that rounds a weight during training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...compiler.core.markers import Quantized
from ...compiler.numerics.straight_through import check_theta, fake_quantize_channels, held
from ..layers.weight_grid import LayerWeight, WeightGrid, largest_scale, raised, scale_floor, weight_grid


class WeightFakeQuantize(nn.Module, Quantized):
    """Rounds a weight to the grid of the static scheme, or to a learned one.

    The learned parameter is the scale as a share of the weight's range, because the folded weight changes with the
    statistics of the normalization. Until :meth:`freeze` the grid follows the weight, and no scale falls below what the
    kernels compute exactly.

    Args:
        label: the path of the layer, for messages.
        of: the layer, and how it is quantized.
        weight: the folded weight at the start.

    Attributes:
        share: the initial share of the range for each scale.
        theta: logarithm of the share relative to the initial one; None if it is not learned.
        scale, zero_point: of the grid at the start, or when it was frozen.
    """

    share: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, label: str, of: LayerWeight, weight: Tensor) -> None:
        super().__init__()
        self.label = label
        self._of = [of]  # in a list: the layer in it is not a submodule
        self.frozen = False
        grid = weight_grid(of, weight.detach(), None)
        self.axis, self.qmin, self.qmax = grid.axis, grid.low, grid.high
        self.register_buffer("scale", grid.scale.clone())
        self.register_buffer("zero_point", grid.zero_point.clone())
        self.register_buffer("bounds", torch.tensor([grid.low, grid.high]))
        self.theta: nn.Parameter | None = None
        self.symmetric = grid.low == -grid.high
        if of.config.scales == "learned" and self.symmetric:
            floor = scale_floor(of, weight.detach(), None)
            self.register_buffer("share", grid.scale / self._widest(weight.detach(), floor))
            self.theta = nn.Parameter(torch.zeros_like(grid.scale))

    @torch.no_grad()
    def grid(self, weight: Tensor) -> WeightGrid:
        """The integers that ``weight`` is rounded to now.

        Raises:
            TrainingError: a learned scale has diverged.
        """
        (of,), weight = self._of, weight.detach()
        if self.theta is None and not self.frozen:
            return weight_grid(of, weight, None)
        floor = scale_floor(of, weight, None) if self.symmetric else None
        if self.theta is None or self.frozen:
            scale = self.scale
        else:
            check_theta(self.theta, self.label)
            scale = self._widest(weight, floor) * self.share * self.theta.exp()
        return WeightGrid(raised(scale, floor), self.zero_point, self.axis, self.qmin, self.qmax)

    def _widest(self, weight: Tensor, floor: Tensor | None) -> Tensor:
        (of,) = self._of
        scale = raised(largest_scale(of, weight), floor)
        return torch.where(scale > 0, scale, 1.0)

    def forward(self, weight: Tensor) -> Tensor:
        """``weight``, which is folded, rounded."""
        grid = self.grid(weight)
        theta = held(self.theta) if self.frozen else self.theta
        return fake_quantize_channels(weight, grid.scale, grid.zero_point, grid.axis, grid.low, grid.high, theta)

    @torch.no_grad()
    def freeze(self, weight: Tensor) -> None:
        """Keep the grid as it is for ``weight`` from now on."""
        if not self.frozen:
            grid = self.grid(weight)
            self.scale.copy_(grid.scale)
            self.zero_point.copy_(grid.zero_point)
            self.frozen = True
            if self.theta is not None:
                self.theta.zero_()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        saved, errors = state_dict.get(f"{prefix}bounds"), rest[-1]
        if saved is not None and saved.tolist() != [self.qmin, self.qmax]:
            low, high = saved.tolist()
            errors.append(
                f"In the checkpoint, the weight of '{self.label}' has integers from {low} to {high}, but this module "
                f"was prepared for {self.qmin} to {self.qmax}. Prepare it with the same weight_bits and weight."
            )
            return
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        scales = f"{self.scale.numel()} scales" if self.scale.numel() > 1 else "one scale"
        return f"{self.label}: integers {self.qmin} to {self.qmax}, {scales}"
