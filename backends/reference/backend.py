"""The frozen program itself, in plain torch ops. The oracle of the tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx, nn

from ...compiler.core.tensors import total_bytes
from ..base.backend import KernelChoice, Lowered, Target
from ..base.binding import Binding
from ..base.dynamic_layer import DynamicLayer, ReferenceLayer
from ..base.op import Output
from ..base.program import FrozenProgram, copy_program
from ..ops.table import OPS

# In fp32, as int8 in and out costs accuracy, or as a real backend has no int8 form of them, either.
_IN_FP32 = (
    "sub", "div", "matmul", "scaled_dot_product_attention", "softmax", "log_softmax", "gelu", "mish", "softplus",
    "layer_norm", "group_norm", "instance_norm1d", "instance_norm2d", "instance_norm3d", "max_pool3d", "expand",
    "repeat",
)  # fmt: skip
_DYNAMIC = (
    "linear", "conv1d", "conv2d", "conv3d", "lstm", "gru", "lstmcell", "grucell", "rnncell", "embedding",
    "embedding_bag",
)  # fmt: skip
_FLOAT_OUTPUT = ("linear",)


def _binding(name: str, output: Output) -> Binding:
    return Binding(
        int8=output is not Output.FLOAT and name not in _IN_FP32,
        reason="the reference backend computes it in fp32",
        float_output=name in _FLOAT_OUTPUT,
        dynamic=ReferenceLayer if name in _DYNAMIC else None,
    )


class ReferenceBackend:
    """Runs a frozen program as it is, on any CPU.

    Args:
        target: the CPU to compile for; it makes no difference.
    """

    name = "reference"
    bindings: Mapping[str, Binding] = {row.name: _binding(row.name, row.output) for row in OPS.rows}
    affine_weight_limit: int | None = None
    measures_latency = False
    same_roundings = True
    machine = "any"

    def __init__(self, target: Target | None = None) -> None:
        self.target = target or Target(vnni=True)

    def weight_scale_floor(
        self, layer: nn.Module, weight: Tensor, top: Tensor | None, rounding: float = 0.5
    ) -> Tensor | None:
        """None: fp32 sums do not saturate."""
        return None

    def graph_forms(self, gm: fx.GraphModule) -> list[Callable[..., Any]]:
        """The graph itself."""
        return [gm.forward]

    def latencies(self, program: FrozenProgram) -> None:
        """None: its speed says nothing."""

    def lower(self, program: FrozenProgram, layers: Mapping[nn.Module, DynamicLayer]) -> Lowered:
        """A copy of the program."""
        copied = copy_program(program, layers)
        gm = copied.program.module
        nodes = (n for n in gm.graph.nodes if n.op in ("call_function", "call_method", "call_module"))
        choices = {node: KernelChoice("reference") for node in nodes}
        size = total_bytes((*gm.buffers(), *gm.parameters()))
        return Lowered(gm, copied.program, copied.of, choices, size)
