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

from ..backends.base import Backend, Call
from ..backends.units import Unit
from ..compiler.batches import Batch
from ..compiler.observers import OBSERVER_CLASSES
from ..compiler.qdq import round_trip
from ..compiler.values import bind_inputs
from .assign_precision import Assignment
from .layer_weight import by_channels
from .weights import widest_scale


def measured_noise(
    gm: fx.GraphModule,
    trials: Mapping[fx.Node, Sequence[Tensor]],
    assignment: Assignment,
    backend: Backend,
    sample: Sequence[Batch],
) -> dict[fx.Node, Tensor]:
    """Noise-to-signal ratio at the output of each layer in ``trials``, for each of its scales per input channel."""
    meter = _Meter(gm, trials, assignment, backend)
    with torch.no_grad():
        for batch in sample:
            meter.run(*bind_inputs(gm, *batch))
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
        self.noise = {n: torch.zeros(len(scales)) for n, scales in trials.items()}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self.trials:
            layer: Any = self.submodules[str(n.target)]
            power = float(result.square().sum()) or 1.0
            scales = self.trials[n] if len(self.trials[n]) > 1 else ()
            for number, scale in enumerate(scales):
                self.noise[n][number] += self._noise(n, layer, self.env[n.all_input_nodes[0]], result, scale) / power
        return result

    def _noise(self, node: fx.Node, layer: nn.Module, x: Tensor, result: Tensor, scale: Tensor) -> float:
        unit = self.units[node]
        config = self.assignment.config_of(unit)
        weight: Any = layer.weight
        axis = x.dim() - (weight.dim() - 1)
        along = [1] * x.dim()
        along[axis] = -1
        scaled = x / scale.reshape(along)
        observer = OBSERVER_CLASSES[config.observer](node.name, config.activation.endswith("symmetric"))
        observer.observe(scaled)
        known = observer.qparams()
        rounded = round_trip(scaled, known)
        error = layer(rounded * scale.reshape(along)) - result
        others = [d for d in range(x.dim()) if d != axis]
        square = scaled.square().mean(others) if others else scaled.square()
        high = scaled.amax(others) if others else scaled
        top = ((high / known.scale).round() + known.zero_point).clamp(known.zero_point, 255)
        positions = result.numel() / self._outputs(unit, layer)
        return float(error.square().sum()) + positions * self._weight_noise(unit, layer, scale, square, top)

    @staticmethod
    def _outputs(unit: Unit, layer: nn.Module) -> int:
        groups, outputs = by_channels(layer, unit.rule).shape[:2]
        return groups * outputs

    def _weight_noise(self, unit: Unit, layer: nn.Module, scale: Tensor, square: Tensor, top: Tensor) -> float:
        """Power that rounding the scaled weight adds at one position, summed over the outputs."""
        split = by_channels(layer, unit.rule)
        groups, outputs, inputs, window = split.shape
        scaled = split * scale.reshape(groups, 1, inputs, 1)
        if unit.rule.channel_axis == 1:
            scaled = scaled.transpose(1, 2)
        weight: Any = layer.weight
        call = Call(unit.root, layer, self.assignment.values)
        config = self.assignment.config_of(unit)
        steps = widest_scale(call, unit.rule, config, self.backend, scaled.reshape(weight.shape), top)
        power = square.reshape(groups, inputs).sum(1) * window
        return float((steps.square().expand(groups * outputs).reshape(groups, -1) * power[:, None]).sum()) / 12
