"""Make layers with int8 or fp16 weights: as a backend runs them, and as the frozen program holds them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import nn

from ...backends.base.backend import Backend, binding_of
from ...backends.base.dynamic_layer import DynamicLayer, ReferenceLayer
from ...backends.base.dynamic_spec import DynamicSpec, RoundedWeight, example_inputs, weight_names
from ...backends.base.joined_backend import backend_of_layer
from ...backends.base.op import OpRow
from ...backends.base.weights import IntegerWeight
from ...backends.ops.table import OPS
from ...compiler.core.memory import release_after
from ...compiler.core.tensors import tensors_of
from ...compiler.numerics.metrics import sqnr
from ..layers.weight_grid import LayerWeight, quantize_weight
from .plan import LayerRequest, beyond_half

ENTRY = ("weight_ih_l0",)  # and its reverse
ENTRY_SHARE = 0.05  # of the weights of a layer
LEAST_SQNR = 25  # dB; a tensor of normal numbers in 8 bits has about 40


@dataclass(frozen=True, eq=False)
class MadeLayer:
    """A layer in both forms.

    Attributes:
        reference: plain torch ops, for the frozen program.
        compiled: what the backend runs.
        remark: what was asked for and not done.
    """

    reference: ReferenceLayer
    compiled: DynamicLayer
    remark: str = ""


class LayerMaker:
    """Makes the layers of one model. Each float layer is made once, and weights that layers share are rounded once.

    Attributes:
        compiled: what the backend runs, by the reference layer.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.compiled: dict[nn.Module, DynamicLayer] = {}
        self._done: dict[nn.Module, MadeLayer | str] = {}
        self._weights: dict[tuple[int, torch.dtype, str, bool], RoundedWeight] = {}

    @property
    def made(self) -> list[MadeLayer]:
        """All layers that were made."""
        return [layer for layer in self._done.values() if isinstance(layer, MadeLayer)]

    def make(self, layer: nn.Module, request: LayerRequest, relu: bool) -> MadeLayer | str:
        """The layer as requested, or the reason why the kernel of the backend cannot be trusted with it.

        Args:
            relu: whether the layer is to include the ReLU after it.
        """
        if layer not in self._done:
            self._done[layer] = self._made(layer, request, relu)
        return self._done[layer]

    def _made(self, layer: nn.Module, request: LayerRequest, relu: bool) -> MadeLayer | str:
        row = row_of(layer)
        binding = binding_of(self.backend, row)
        half = replace(request, dtype=torch.float16)
        entry = _entry(layer) if binding.mixed_weights else ()
        weights = {n: self._rounded(layer, n, row, half if n in entry else request) for n in weight_names(layer)}
        spec = DynamicSpec.of(row.name, layer, weights, relu)
        make = binding.dynamic
        assert make is not None
        compiled = make(spec)
        decibels = layer_sqnr(spec, compiled)
        compiled.release()
        if decibels < LEAST_SQNR:
            return f"its {compiled.kernel} has {decibels:.0f} dB on random inputs, and {LEAST_SQNR} dB are required"
        integers = [n for n, weight in weights.items() if isinstance(weight, IntegerWeight)]
        refusals = [self._weight(layer, row, request).refuse_groups(n) for n in integers]
        made = MadeLayer(ReferenceLayer(spec), compiled, next(filter(None, refusals), ""))
        self.compiled[made.reference] = compiled
        release_after(layer.parameters())
        return made

    def _rounded(self, layer: nn.Module, name: str, row: OpRow, request: LayerRequest) -> RoundedWeight:
        parameter = layer.get_parameter(name)
        # By identity: the parameter lives as long as its layer, which _done holds.
        grouped = binding_of(self.backend, row).group_scales
        key = (id(parameter), request.dtype, repr(request.config), grouped)
        if key not in self._weights:
            if request.dtype == torch.float16:
                self._weights[key] = parameter.detach().half()
            else:
                self._weights[key] = quantize_weight(self._weight(layer, row, request), name=name, dynamic=True)
        return self._weights[key]

    def _weight(self, layer: nn.Module, row: OpRow, request: LayerRequest) -> LayerWeight:
        return LayerWeight(layer, row, request.config, backend_of_layer(self.backend, row.name))


def _entry(layer: nn.Module) -> list[str]:
    """Weights that read the input of a recurrent layer, if they are few.

    Features of an input may differ by orders of magnitude, as those of spectra do, and the weights with them. No layer
    before has adapted to the rounding of a row.
    """
    names = [n for n in weight_names(layer) if n.startswith(ENTRY)]
    size, entry = (sum(layer.get_parameter(n).numel() for n in each) for each in (weight_names(layer), names))
    fits = entry <= ENTRY_SHARE * size and not beyond_half(layer.get_parameter(n) for n in names)
    return names if fits else []


def row_of(layer: nn.Module) -> OpRow:
    """The row of a layer that is known to have one."""
    row = OPS.find(type(layer))
    assert row is not None
    return row


@torch.no_grad()
def layer_sqnr(spec: DynamicSpec, made: DynamicLayer) -> float:
    """SQNR [dB] of a layer against the float layer with the same rounded weights, on random inputs."""
    given = example_inputs(spec.layer)
    # Against the signal before a ReLU, which may pass almost nothing.
    outputs = (spec.without_relu.run(*given), spec.run(*given), made(*given))
    parts = zip(*map(tensors_of, outputs), strict=True)
    worst = min(sqnr([signal], [signal + (exact - ours)]) for signal, exact, ours in parts)
    return -math.inf if math.isnan(worst) else worst
