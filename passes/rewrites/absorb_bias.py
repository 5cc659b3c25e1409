r"""Bias absorption (Nagel et al. 2019, arXiv:1906.04721, section 4.1.3).

If a channel after a ReLU never falls below :math:`c > 0`, that part carries no signal, but widens the range. Because
:math:`relu(x) - c = relu(x - c)` for all :math:`x \ge c`, it can move into the layer that reads the channel:

.. math:: b_1' = b_1 - c, \qquad b_2' = b_2 + W_2 c.

The paper takes :math:`c = \max(0, \beta - 3 \gamma)` from batch normalization; 0.1 % of a normal distribution is below
that. Here ``c`` is the least value in a sample: exact for every input that stays above it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ...backends.base.op import Output
from ...backends.ops.units import Unit, clamp_bounds, match_units
from ...compiler.execution.sample import Batch
from ..analysis.statistics import channel_statistics
from ..base import PassResult
from ..layers.layer_weight import by_channels, shift
from ..layers.sharing import Sharing

VALUES = 1000  # least number of values of a channel in the sample: the least of fewer is no floor
LEAST_SHARE = 0.05  # of the largest value of the channel; absorbing less gains nothing


class AbsorbBias:
    """Exact only for inputs whose channels stay above the least values of the sample.

    Args:
        sample: batches to take the least values from.
        refuse: the reason why a layer must be left as it is, or None.
        forced: whether to change a layer even if its channels have few values in the sample.
    """

    name = "absorb_bias"
    exact = False

    def __init__(
        self,
        sample: Sequence[Batch],
        refuse: Callable[[fx.Node], str | None],
        forced: Callable[[fx.Node], bool] = lambda node: True,
    ) -> None:
        self.sample, self.refuse, self.forced = sample, refuse, forced

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        units = match_units(gm).units
        modules = dict(gm.named_modules())
        sharing = Sharing(gm)
        weighted = {u.root: u for u in units if u.row.weighted and u.root.op == "call_module"}
        refusals, usable, remarks = dict[fx.Node, str](), list[Unit](), dict[fx.Node, str]()
        for unit in weighted.values():
            if unit.row.output is Output.WEIGHT_ONLY or clamp_bounds(unit) != (0.0, math.inf):
                continue
            reason = self._refusal(unit, weighted, modules, sharing)
            if reason:
                refusals[unit.root] = f"bias not absorbed: {reason}"
            else:
                usable.append(unit)
        axes = {u.output: -modules[str(u.root.target)].weight.dim() + 1 for u in usable}
        statistics = channel_statistics(gm, axes, self.sample)
        for unit in usable:
            seen = statistics[unit.output]
            if seen.count < VALUES and not self.forced(unit.root):
                refusals[unit.root] = (
                    f"bias not absorbed: a sample of {seen.count} values per channel is too small to find a minimum"
                )
                continue
            floor = torch.where(seen.low > LEAST_SHARE * seen.high, seen.low, 0.0)
            if not floor.any():
                continue
            shift(modules[str(unit.root.target)], -floor)
            for reader in unit.output.users:
                layer, row = modules[str(reader.target)], weighted[reader].row
                shift(layer, _response(by_channels(layer, row), floor))
            remarks[unit.root] = f"bias absorbed: up to {float(floor.max()):.3g} in {int((floor > 0).sum())} channels"
        return PassResult(len(remarks), refusals, remarks)

    def _refusal(
        self, unit: Unit, weighted: dict[fx.Node, Unit], modules: dict[str, Any], sharing: Sharing
    ) -> str | None:
        for node in (unit.root, *unit.output.users):
            if node not in weighted:
                return f"its reader '{node.name}' is no convolution or linear layer"
            reason = sharing.reason(modules[str(node.target)], str(node.target)) or self.refuse(node)
            if reason:
                return reason
        for reader in unit.output.users:
            layer = modules[str(reader.target)]
            if layer.weight.dim() != modules[str(unit.root.target)].weight.dim():
                return f"'{reader.name}' reads another axis"
            padding = getattr(layer, "padding", 0)
            if padding == "same" or (not isinstance(padding, str) and any(torch.tensor(padding).reshape(-1))):
                return f"'{reader.name}' pads with zeros, where the constant would be missing"
            if weighted[reader].row.channel_axis == 1:
                return f"'{reader.name}' is transposed: not every output reads every weight"
        return None


def _response(split: Tensor, constant: Tensor) -> Tensor:
    """The output of a layer with weight ``split`` for an input that is ``constant`` in each channel."""
    groups, _, inputs, _ = split.shape
    product: Tensor = split.double().sum(-1) * constant.double().reshape(groups, 1, inputs)
    return product.sum(-1).flatten()
