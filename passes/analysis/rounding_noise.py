r"""How much noise rounding adds to the output of a layer, for several scales of its input channels.

With the input scaled by :math:`1/s_c` and the weight by :math:`s_c`, the error of the rounded input is measured at the
output of the layer; that of the rounded weight is estimated as
:math:`\sum_o \frac{\Delta_o^2}{12} \sum_c E[x_c^2] / s_c^2` with :math:`\Delta_o` the weight step of output ``o``.
Both are divided by the power of the output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...backends.ops.units import Unit
from ...compiler.execution.batches import run_batches
from ...compiler.execution.sample import Batch
from ...compiler.execution.visitor import Visitor
from ...compiler.numerics.observer import Observer
from ...compiler.numerics.observers import OBSERVER_CLASSES
from ...compiler.numerics.quantize import round_trip
from ..layers.layer_weight import by_channels, output_channels
from ..layers.weight_grid import LayerWeight, widest_scale
from .assignment import Assignment


def measured_noise(
    gm: fx.GraphModule,
    trials: Mapping[fx.Node, Sequence[Tensor]],
    assignment: Assignment,
    sample: Sequence[Batch],
) -> dict[fx.Node, Tensor]:
    """Noise-to-signal ratio at the output of each layer in ``trials``, for each of its scales per input channel.

    It is measured on the first batch, with ranges from the other batches, so that values outside the ranges count.
    """
    meter = _Meter(gm, trials, assignment)
    run_batches(meter.run.call, sample[1:] or sample, "ranges of scaled channels")
    meter.measuring = True
    run_batches(meter.run.call, sample[:1], "rounding noise")
    return meter.noise


class _Meter:
    def __init__(self, gm: fx.GraphModule, trials: Mapping[fx.Node, Sequence[Tensor]], assignment: Assignment) -> None:
        self.run = Visitor(gm, self._see)
        self.trials, self.assignment = trials, assignment
        self.units = {u.root: u for u in assignment.int8_units}
        self.observers = {n: [self._observer(n) for _ in scales] for n, scales in trials.items()}
        self.measuring = False
        self.noise = {n: torch.zeros(len(scales)) for n, scales in trials.items()}

    def _observer(self, node: fx.Node) -> Observer:
        config = self.assignment.config_of(self.units[node])
        return OBSERVER_CLASSES[config.observer](node.name, config.activation_symmetric)

    def _see(self, n: fx.Node, result: Any) -> Any:
        if n in self.trials:
            x = self.run.env[n.all_input_nodes[0]]
            layer: Any = self.run.submodules[str(n.target)]
            power = float(result.square().sum()) or 1.0
            for number, (scale, observer) in enumerate(zip(self.trials[n], self.observers[n], strict=True)):
                factor = scale.reshape(-1, *[1] * (layer.weight.dim() - 2))
                if self.measuring:
                    self.noise[n][number] += self._noise(n, layer, x, result, factor, observer) / power
                else:
                    observer.observe(x / factor)
        return result

    def _noise(self, node: fx.Node, layer: Any, x: Tensor, result: Tensor, factor: Tensor, observer: Observer) -> float:
        unit, known, scaled = self.units[node], observer.qparams(), x / factor
        error = layer(round_trip(scaled, known) * factor) - result
        axis = x.dim() - (layer.weight.dim() - 1)
        others = [d for d in range(x.dim()) if d != axis]
        square = scaled.square().mean(others) if others else scaled.square()
        high = scaled.amax(others) if others else scaled
        top = ((high / known.scale).round() + known.zero_point).clamp(known.zero_point, 255)
        positions = result.numel() / output_channels(layer, unit.row)
        return float(error.square().sum()) + positions * self._weight_noise(unit, layer, factor.flatten(), square, top)

    def _weight_noise(self, unit: Unit, layer: nn.Module, scale: Tensor, square: Tensor, top: Tensor) -> float:
        """The power that rounding the scaled weight adds at one position, summed over the outputs."""
        split = by_channels(layer, unit.row)
        groups, outputs, inputs, window = split.shape
        scaled = split * scale.reshape(groups, 1, inputs, 1)
        weight: Any = layer.weight
        config = self.assignment.config_of(unit)
        steps = widest_scale(
            LayerWeight(layer, unit.row, config, self.assignment.backend), scaled.reshape(weight.shape), top
        )
        power = square.reshape(groups, inputs).sum(1) * window
        return float((steps.square().expand(groups * outputs).reshape(groups, -1) * power[:, None]).sum()) / 12
