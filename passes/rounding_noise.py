r"""How much noise rounding would add at a layer's output, for several scalings of its input channels.

With the input scaled by :math:`1/s_c` and the weight by :math:`s_c`, the error of the rounded input is taken through
the layer; that of the rounded weight is estimated as
:math:`\sum_o \frac{\Delta_o^2}{12} \sum_c E[x_c^2] / s_c^2` with :math:`\Delta_o` the weight step of output ``o``.
Both are relative to the power of the output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..backends.base import Backend
from ..backends.units import Unit
from ..compiler.batches import Batch
from ..compiler.observers import OBSERVER_CLASSES, Observer
from ..compiler.qdq import round_trip
from ..compiler.values import bind_inputs
from .assign_precision import Assignment
from .layer_weight import by_channels, output_channels
from .weights import widest_scale


def measured_noise(
    gm: fx.GraphModule,
    trials: Mapping[fx.Node, Sequence[Tensor]],
    assignment: Assignment,
    backend: Backend,
    sample: Sequence[Batch],
) -> dict[fx.Node, Tensor]:
    """Noise-to-signal ratio at the output of each layer in ``trials``, for each of its scales per input channel.

    Measured on the first batch, with ranges from the others, so that values beyond what was seen count.
    """
    meter = _Meter(gm, trials, assignment, backend)
    with torch.no_grad():
        for batch in sample[1:] or sample:
            meter.run(*bind_inputs(gm, *batch))
        meter.measuring = True
        meter.run(*bind_inputs(gm, *sample[0]))
    return meter.noise


class _Meter(fx.Interpreter):
    def __init__(
        self,
        gm: fx.GraphModule,
        trials: Mapping[fx.Node, Sequence[Tensor]],
        assignment: Assignment,
        backend: Backend,
    ) -> None:
        super().__init__(gm)
        self.trials, self.assignment, self.backend = trials, assignment, backend
        self.units = {u.root: u for u in assignment.int8_units}
        self.observers = {n: [self._observer(n) for _ in scales] for n, scales in trials.items()}
        self.measuring = False
        self.noise = {n: torch.zeros(len(scales)) for n, scales in trials.items()}

    def _observer(self, node: fx.Node) -> Observer:
        config = self.assignment.config_of(self.units[node])
        return OBSERVER_CLASSES[config.observer](node.name, config.activation.endswith("symmetric"))

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self.trials:
            x = self.env[n.all_input_nodes[0]]
            layer: Any = self.submodules[str(n.target)]
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
        positions = result.numel() / output_channels(layer, unit.rule)
        return float(error.square().sum()) + positions * self._weight_noise(unit, layer, factor.flatten(), square, top)

    def _weight_noise(self, unit: Unit, layer: nn.Module, scale: Tensor, square: Tensor, top: Tensor) -> float:
        """Power that rounding the scaled weight adds at one position, summed over the outputs."""
        split = by_channels(layer, unit.rule)
        groups, outputs, inputs, window = split.shape
        scaled = split * scale.reshape(groups, 1, inputs, 1)
        weight: Any = layer.weight
        config = self.assignment.config_of(unit)
        steps = widest_scale(layer, unit.rule, config, self.backend, scaled.reshape(weight.shape), top)
        power = square.reshape(groups, inputs).sum(1) * window
        return float((steps.square().expand(groups * outputs).reshape(groups, -1) * power[:, None]).sum()) / 12
