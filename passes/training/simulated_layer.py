r"""Layers of a model in training whose weights are rounded as for their int8 kernels.

For inference, a batch normalization after a layer is folded into it, so the folded weight must be rounded. But in
training, the normalization uses the statistics of the batch, which are known only after the layer. So the layer
computes with :math:`round(g W)`, where :math:`g = \gamma / \sqrt{\sigma^2 + \epsilon}` has the running variance; its
output is divided by :math:`g`, and then normalized (Krishnamoorthi 2018, arXiv:1806.08342, section 3.2.2).
With running statistics (in eval mode, or once the batch normalization is frozen) it is folded as for inference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...backends.base.backend import Backend
from ...backends.base.op import OpRow
from ...backends.base.weights import IntegerWeight
from ...compiler.core.config import QuantConfig
from ...compiler.numerics.quantize import along
from ..layers.layer_weight import function_arguments
from ..layers.weight_grid import LayerWeight
from .weight_fake_quantize import WeightFakeQuantize

TINY = 1e-12  # a channel with a smaller gain is not divided by it


class SimulatedLayer(nn.Module):
    """A weighted layer with rounded weights, together with the batch normalization after it.

    Both are modules of the model, which keep their names: they are not submodules of this one.

    Attributes:
        path: the path of the layer in the model.
        rounds: the fake-quant of its weight; None for a layer that stays in fp32.
    """

    def __init__(self, path: str, layer: nn.Module, norm: nn.Module | None, row: OpRow) -> None:
        super().__init__()
        self.path, self.row = path, row
        self._own: tuple[nn.Module, nn.Module | None, WeightFakeQuantize | None] = (layer, norm, None)

    def round_weight(self, config: QuantConfig, backend: Backend) -> None:
        """Round the weight from now on."""
        layer, norm, _ = self._own
        of = LayerWeight(layer, self.row, config, backend)
        rounds = WeightFakeQuantize(self.path, of, self.folded_weight())
        self._own = (layer, norm, rounds)

    @property
    def layer(self) -> Any:
        """The convolution, linear layer or embedding of the model."""
        return self._own[0]

    @property
    def norm(self) -> Any:
        """The batch normalization after it, or None."""
        return self._own[1]

    @property
    def rounds(self) -> WeightFakeQuantize | None:
        return self._own[2]

    def forward(self, x: Tensor, *rest: Any, **options: Any) -> Tensor:
        """The normalized output of the layer for ``x``. Only a layer that does not round takes further arguments."""
        layer, norm, rounds = self.layer, self.norm, self.rounds
        if rounds is None:
            given = layer(x, *rest, **options)
            return norm(given) if norm is not None else given
        if norm is None:
            return self._call(x, rounds(layer.weight), getattr(layer, "bias", None))
        if not norm.training:
            return self._call(x, rounds(self.folded_weight()), self._folded_bias())
        normalized: Tensor = norm(self.before_norm(x))
        return normalized

    def before_norm(self, x: Tensor) -> Tensor:
        """What the normalization is given, with the weight rounded as it is folded with the running variance."""
        layer, rounds = self.layer, self.rounds
        if rounds is None:
            given: Tensor = layer(x)
            return given
        gain = self._gain().detach()
        gain = torch.where(gain.abs() < TINY, 1.0, gain)
        given = self._call(x, rounds(layer.weight * along(gain, layer.weight, self.row.channel_axis)), None)
        channels = 1 if given.dim() > 2 else -1
        plain = given / along(gain, given, channels)
        return plain if layer.bias is None else plain + along(layer.bias, given, channels)

    def _call(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        arguments = function_arguments(self.layer, self.row)
        if "sparse" in arguments:
            arguments["sparse"] = False  # the gradient of the rounding is dense
        given = {} if bias is None else {"bias": bias}
        assert self.row.functional is not None
        result: Tensor = self.row.functional(x, weight, **given, **arguments)
        return result

    def _gain(self) -> Tensor:
        norm = self.norm
        gain: Tensor = torch.rsqrt(norm.running_var + norm.eps)
        return gain if norm.weight is None else gain * norm.weight

    def folded_weight(self) -> Tensor:
        """The weight with the normalization by running statistics folded in."""
        weight: Tensor = self.layer.weight
        return weight if self.norm is None else weight * along(self._gain(), weight, self.row.channel_axis)

    def _folded_bias(self) -> Tensor:
        norm, bias = self.norm, self.layer.bias
        shifted: Tensor = (-norm.running_mean if bias is None else bias - norm.running_mean) * self._gain()
        return shifted if norm.bias is None else shifted + norm.bias

    def freeze(self) -> None:
        """Keep the scales of the weight as they are from now on."""
        if self.rounds is not None:
            self.rounds.freeze(self.folded_weight())

    def integers(self) -> IntegerWeight | None:
        """The rounded weight, folded as for inference; None for a layer in fp32."""
        if self.rounds is None:
            return None
        weight = self.folded_weight().detach()
        grid = self.rounds.grid(weight)
        return IntegerWeight(grid.integers(weight), grid.scale, grid.zero_point, grid.axis)
