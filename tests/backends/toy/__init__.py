"""A backend as a contributor would begin one: it runs linear layers and convolutions as functions over integer sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, fx, nn

from fxquant.backends.base.backend import Backend, KernelChoice, Lowered, Target
from fxquant.backends.base.binding import Binding
from fxquant.backends.base.dynamic_layer import DynamicLayer
from fxquant.backends.base.program import FrozenProgram, copy_program
from fxquant.backends.ops.units import match_units
from fxquant.compiler.core.tensors import total_bytes


class ToyBackend:
    """Int8 convolutions, linear layers, clamps and pools; a scale for the whole weight of a convolution."""

    name = "toy"
    bindings: Mapping[str, Binding] = {
        "conv2d": Binding(per_channel=False),
        "linear": Binding(float_output=True),
        "flatten": Binding(),
        "relu6": Binding(),
        "adaptive_avg_pool2d": Binding(),
        "add": Binding(False, "the toy adds in fp32"),
    }
    affine_weight_limit: int | None = None
    measures_latency = False
    same_roundings = True
    machine = "a toy"

    def __init__(self, target: Target | None) -> None:
        self.target = target or Target(vnni=False)

    def weight_scale_floor(
        self, layer: nn.Module, weight: Tensor, top: Tensor | None, rounding: float = 0.5
    ) -> Tensor | None:
        return None

    def graph_forms(self, gm: fx.GraphModule) -> list[Callable[..., object]]:
        return [gm.forward]

    def latencies(self, program: FrozenProgram) -> None:
        return None

    def lower(self, program: FrozenProgram, layers: Mapping[nn.Module, DynamicLayer]) -> Lowered:
        copied = copy_program(program, layers)
        units = match_units(copied.program.module).units
        choices = {u.root: KernelChoice(f"toy::{u.row.name}") for u in units if u.root not in copied.program.fp32}
        return Lowered(
            copied.program.module, copied.program, copied.of, choices, total_bytes(copied.program.module.buffers())
        )


def create(target: Target | None, executor: str) -> Backend:
    return ToyBackend(target)
