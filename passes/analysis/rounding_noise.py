r"""How much noise rounding adds to the output of a layer, for several scales of its input channels.

With the input scaled by :math:`1/s_c` and the weight by :math:`s_c`, the error of the rounded input is measured at the
output of the layer; that of the rounded weight is estimated as
:math:`\sum_o \frac{\Delta_o^2}{12} \sum_c E[x_c^2] / s_c^2` with :math:`\Delta_o` the weight step of output ``o``.
Both are divided by the power of the output.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...backends.ops.units import Unit
from ...compiler.execution.batches import run_batches
from ...compiler.execution.replay import Replay
from ...compiler.execution.sample import Batch
from ...compiler.execution.visitor import Visitor
from ...compiler.numerics.metrics import relative_noise
from ...compiler.numerics.observer import Observer
from ...compiler.numerics.observers import OBSERVER_CLASSES
from ...compiler.numerics.quantize import round_trip
from ..layers.layer_weight import by_channels, output_channels
from ..layers.weight_grid import LayerWeight, quantize_weight, widest_scale
from .assignment import Assignment


class NoiseMeter:
    """Measures the noise of layers on the first batch, with ranges from the other batches.

    So values outside the ranges count.

    Args:
        trials: for each layer, scales per input channel.
        sample: batches.

    Attributes:
        noise: noise-to-signal ratio at the output of each layer, for each of its scales.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        trials: Mapping[fx.Node, Sequence[Tensor]],
        assignment: Assignment,
        sample: Sequence[Batch],
    ) -> None:
        self.run = Visitor(gm, self._see)
        self.gm, self.trials, self.assignment, self.sample = gm, trials, assignment, sample
        self.units = {u.root: u for u in assignment.int8_units}
        self.observers = {n: [self._observer(n) for _ in scales] for n, scales in trials.items()}
        self.measuring = False
        self.noise = {n: torch.zeros(len(scales)) for n, scales in trials.items()}
        run_batches(self.run.call, sample[1:] or sample, "ranges of scaled channels")
        self.measuring = True
        run_batches(self.run.call, sample[:1], "rounding noise")

    @cached_property
    def _replay(self) -> Replay:
        return Replay(self.gm, self.sample[0])

    def output_noise(self, layers: Sequence[fx.Node]) -> Tensor:
        """Noise-to-signal ratio at the output of the model if only ``layers`` are rounded, for each of their scales."""
        counts = range(len(self.trials[layers[0]]))
        forms = ({n: partial(self._rounded, n, number) for n in layers} for number in counts)
        return torch.tensor([relative_noise(self._replay.output, self._replay.with_forms(f)) for f in forms])

    def _rounded(self, node: fx.Node, number: int, values: Mapping[fx.Node, Any]) -> Any:
        """The value of a layer with rounded weights, and its input rounded, both scaled."""
        layer, unit = self.run.submodules[str(node.target)], self.units[node]
        factor = self._factor(node, number)
        scaled = copy.copy(layer)
        scaled._parameters = dict(layer._parameters)
        scaled.weight = nn.Parameter(_times_inputs(layer, unit, self.trials[node][number]), requires_grad=False)
        of = LayerWeight(scaled, unit.row, self.assignment.config_of(unit), self.assignment.backend)
        scaled.weight = nn.Parameter(quantize_weight(of).dequantized(), requires_grad=False)
        x = values[node.all_input_nodes[0]] / factor
        return scaled(round_trip(x, self.observers[node][number].qparams()))

    def _factor(self, node: fx.Node, number: int) -> Tensor:
        """A scale in a shape that broadcasts over the input of a layer."""
        layer: Any = self.run.submodules[str(node.target)]
        return self.trials[node][number].reshape(-1, *[1] * (layer.weight.dim() - 2))

    def _observer(self, node: fx.Node) -> Observer:
        config = self.assignment.config_of(self.units[node])
        return OBSERVER_CLASSES[config.observer](node.name, config.activation_symmetric)

    def _see(self, n: fx.Node, result: Any) -> Any:
        if n in self.trials:
            x = self.run.env[n.all_input_nodes[0]]
            layer: Any = self.run.submodules[str(n.target)]
            power = float(result.square().sum()) or 1.0
            for number, observer in enumerate(self.observers[n]):
                factor = self._factor(n, number)
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
        groups, outputs, inputs, window = by_channels(layer, unit.row).shape
        of = LayerWeight(layer, unit.row, self.assignment.config_of(unit), self.assignment.backend)
        steps = widest_scale(of, _times_inputs(layer, unit, scale), top)
        power = square.reshape(groups, inputs).sum(1) * window
        return float((steps.square().expand(groups * outputs).reshape(groups, -1) * power[:, None]).sum()) / 12


def _times_inputs(layer: nn.Module, unit: Unit, scale: Tensor) -> Tensor:
    """The weight of a layer times a scale for each of its input channels."""
    split = by_channels(layer, unit.row)
    scaled = split * scale.reshape(len(split), 1, -1, 1)
    weight: Any = layer.weight
    return scaled.reshape(weight.shape)
