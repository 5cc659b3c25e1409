r"""Layers of a model in training whose weights are rounded as their int8 kernels will have them.

A batch normalisation behind a layer is folded into it for inference (:mod:`.fold_batchnorm`), so it is the folded
weight that must be rounded, though in training the statistics of the batch normalise, which are known only behind the
layer. With :math:`g = \gamma / \sqrt{\sigma^2 + \epsilon}` of the running variance, the layer computes with
:math:`round(g W)`, its output is divided by :math:`g` again, and then normalised as ever (the scale-factor method:
Krishnamoorthi 2018, arXiv:1806.08342, section 3.2.2). With running statistics (in eval mode, or once the batch
normalisation is frozen) both fold exactly as they will.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..backends.base import Backend, IntegerWeight, OpRule
from ..compiler.config import QuantConfig
from ..compiler.fake_quantize import check_theta, fake_quantize_channels, held
from ..compiler.qdq import along
from .layer_weight import function_arguments
from .weights import WeightGrid, largest_scale, raised, scale_floor, weight_grid

TINY = 1e-12  # a channel with a smaller gain gives nothing: it is not divided by it


class WeightFakeQuantize(nn.Module):
    """Rounds a weight to the grid that the static scheme would give it, or to one that is learned.

    Learned is the share of its range that a scale covers, for the folded weight grows and shrinks with the statistics
    of the normalisation. Until :meth:`freeze` the grid follows the weight in either case, and no scale ever falls below
    what the kernels compute exactly.

    Attributes:
        label: the path of its layer, for messages.
        share: of the range of the weight, for each scale, at the start.
        theta: log of the share against that; None where it is not learned.
        scale, zero_point: of the grid at the start, or when it was frozen.
    """

    share: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(
        self, label: str, layer: nn.Module, rule: OpRule, config: QuantConfig, backend: Backend, weight: Tensor
    ) -> None:
        super().__init__()
        self.label = label
        self._kind = (layer, rule, config, backend)
        self.frozen = False
        grid = weight_grid(*self._kind, weight.detach(), None)
        self.axis, self.qmin, self.qmax = grid.axis, grid.low, grid.high
        self.register_buffer("scale", grid.scale.clone())
        self.register_buffer("zero_point", grid.zero_point.clone())
        self.register_buffer("bounds", torch.tensor([grid.low, grid.high]))
        self.theta: nn.Parameter | None = None
        self.symmetric = grid.low == -grid.high
        if config.scales == "learned" and self.symmetric:
            floor = scale_floor(*self._kind, weight.detach(), None)
            self.register_buffer("share", grid.scale / self._widest(weight.detach(), floor))
            self.theta = nn.Parameter(torch.zeros_like(grid.scale))

    @torch.no_grad()
    def grid(self, weight: Tensor) -> WeightGrid:
        """What ``weight`` is rounded to now."""
        weight = weight.detach()
        if self.theta is None and not self.frozen:
            return weight_grid(*self._kind, weight, None)
        floor = scale_floor(*self._kind, weight, None) if self.symmetric else None
        if self.theta is None or self.frozen:
            scale = self.scale
        else:
            check_theta(self.theta, self.label)
            scale = self._widest(weight, floor) * self.share * self.theta.exp()
        return WeightGrid(raised(scale, floor), self.zero_point, self.axis, self.qmin, self.qmax)

    def _widest(self, weight: Tensor, floor: Tensor | None) -> Tensor:
        _, rule, config, _ = self._kind
        scale = raised(largest_scale(rule, config, weight), floor)
        return torch.where(scale > 0, scale, 1.0)

    def forward(self, weight: Tensor) -> Tensor:
        """``weight``, folded already, rounded."""
        grid = self.grid(weight)
        theta = held(self.theta) if self.frozen else self.theta
        return fake_quantize_channels(weight, grid.scale, grid.zero_point, grid.axis, grid.low, grid.high, theta)

    @torch.no_grad()
    def freeze(self, weight: Tensor) -> None:
        """Let the grid be what it is for ``weight`` from now on."""
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
                f"The checkpoint has integers from {low} to {high} as the weight of '{self.label}', and this module "
                f"was prepared for {self.qmin} to {self.qmax}: prepare it with the same weight_bits and weight."
            )
            return
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        scales = f"{self.scale.numel()} scales" if self.scale.numel() > 1 else "one scale"
        return f"{self.label}: integers {self.qmin} to {self.qmax}, {scales}"


class SimulatedLayer(nn.Module):
    """A weighted layer with rounded weights, together with the batch normalisation behind it.

    It holds both without making them its submodules: they are the model's own, which keep their names.

    Attributes:
        path: of the layer in the model.
        rounds: the fake-quant of its weight; None for one that stays in fp32.
    """

    def __init__(self, path: str, layer: nn.Module, norm: nn.Module | None, rule: OpRule) -> None:
        super().__init__()
        self.path, self.rule = path, rule
        self._own: tuple[nn.Module, nn.Module | None, WeightFakeQuantize | None] = (layer, norm, None)

    def round_weight(self, config: QuantConfig, backend: Backend) -> None:
        """Round the weight from now on."""
        layer, norm, _ = self._own
        rounds = WeightFakeQuantize(self.path, layer, self.rule, config, backend, self.folded_weight())
        self._own = (layer, norm, rounds)

    @property
    def layer(self) -> Any:
        """The model's convolution, linear layer or embedding."""
        return self._own[0]

    @property
    def norm(self) -> Any:
        """The batch normalisation behind it, if any."""
        return self._own[1]

    @property
    def rounds(self) -> WeightFakeQuantize | None:
        return self._own[2]

    def forward(self, x: Tensor, *rest: Any, **options: Any) -> Tensor:
        """What the layer, and its normalisation, give of ``x``; a layer that rounds takes nothing more."""
        layer, norm, rounds = self.layer, self.norm, self.rounds
        if rounds is None:
            given = layer(x, *rest, **options)
            return norm(given) if norm is not None else given
        if norm is None:
            return self._call(x, rounds(layer.weight), getattr(layer, "bias", None))
        if not norm.training:
            return self._call(x, rounds(self.folded_weight()), self._folded_bias())
        gain = self._gain().detach()
        gain = torch.where(gain.abs() < TINY, 1.0, gain)
        given = self._call(x, rounds(layer.weight * along(gain, layer.weight, self.rule.channel_axis)), None)
        channels = 1 if given.dim() > 2 else -1
        plain = given / along(gain, given, channels)
        return norm(plain if layer.bias is None else plain + along(layer.bias, given, channels))

    def _call(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        arguments = function_arguments(self.layer, self.rule)
        if "sparse" in arguments:
            arguments["sparse"] = False  # the gradient passes through the rounding, which is dense
        given = {} if bias is None else {"bias": bias}
        assert self.rule.functional is not None
        result: Tensor = self.rule.functional(x, weight, **given, **arguments)
        return result

    def _gain(self) -> Tensor:
        norm = self.norm
        gain: Tensor = torch.rsqrt(norm.running_var + norm.eps)
        return gain if norm.weight is None else gain * norm.weight

    def folded_weight(self) -> Tensor:
        """The weight with the normalisation by running statistics in it."""
        weight: Tensor = self.layer.weight
        return weight if self.norm is None else weight * along(self._gain(), weight, self.rule.channel_axis)

    def _folded_bias(self) -> Tensor:
        norm, bias = self.norm, self.layer.bias
        shifted: Tensor = (-norm.running_mean if bias is None else bias - norm.running_mean) * self._gain()
        return shifted if norm.bias is None else shifted + norm.bias

    def freeze(self) -> None:
        """Let the scales of the weight be what they are from now on."""
        if self.rounds is not None:
            self.rounds.freeze(self.folded_weight())

    def integers(self) -> IntegerWeight | None:
        """The rounded weight, folded as for inference; None for a layer in fp32."""
        if self.rounds is None:
            return None
        weight = self.folded_weight().detach()
        grid = self.rounds.grid(weight)
        return IntegerWeight(grid.integers(weight), grid.scale, grid.zero_point, grid.axis)
