"""What a backend must offer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor, fx, nn

from .binding import Binding
from .dynamic_layer import DynamicLayer
from .op import OpRow
from .program import FrozenProgram


@dataclass(frozen=True)
class Target:
    """The CPU to compile for.

    Attributes:
        vnni: int8 products are accumulated in 32 bits (AVX512-VNNI). Without it, pairs of products are added in 16
            bits with saturation (``vpmaddubsw``), and weights must leave room for that.
    """

    vnni: bool


@dataclass(frozen=True)
class KernelChoice:
    """What runs an op.

    Attributes:
        kernel: its name.
        precision: what the kernel computes in.
        fused_into: the name of the op whose kernel computes this one, too; "" for none.
    """

    kernel: str
    precision: Literal["int8", "fp32"] = "int8"
    fused_into: str = ""


@dataclass(frozen=True)
class Lowered:
    """What a backend makes of a program.

    Attributes:
        run: same arguments and results as forward().
        executed: the program as executed: a copy, in which fused kernels may have dropped a rounding.
        of: maps each node of the program to its node in ``executed``.
        choices: the kernel of each node of ``executed``; a node that another node's kernel computes has no entry.
        weight_bytes: bytes of parameters in the executed form.
        kernel_errors: takes inputs of the model; returns, by ``quantize`` node of the executed program, the largest
            difference in steps between its kernel and the program, given the same integers. None if the program itself
            is executed.
    """

    run: Callable[..., Any]
    executed: FrozenProgram
    of: Mapping[fx.Node, fx.Node]
    choices: Mapping[fx.Node, KernelChoice]
    weight_bytes: int
    kernel_errors: Callable[..., Mapping[fx.Node, int]] | None = None


@dataclass(frozen=True)
class Latencies:
    """Milliseconds on this machine, on the example: measured, or estimated by a cost model.

    Attributes:
        int8, fp32: of each op in that precision, by the name of its first node.
        quantize, dequantize: of each conversion, by the name of the value that is converted.
        fused: ops that are best fused into the op before them, with the name of that op.
    """

    int8: dict[str, float] = field(default_factory=dict)
    fp32: dict[str, float] = field(default_factory=dict)
    quantize: dict[str, float] = field(default_factory=dict)
    dequantize: dict[str, float] = field(default_factory=dict)
    fused: dict[str, str] = field(default_factory=dict)


class Backend(Protocol):
    """Runs frozen programs on a kind of hardware.

    Attributes:
        name: as in ``compile(backend=...)``.
        target: the CPU that it compiles for.
        bindings: what it can do with each op, by the op's name. An op that is missing stays in fp32.
        affine_weight_limit: the largest magnitude of weight integers with a zero point that the kernels compute
            exactly; None: no limit.
        measures_latency: whether :meth:`latencies` gives any.
        same_roundings: what :meth:`graph_forms` returns computes in the order of torch, so that values that are
            quantized at run time become the same integers.
    """

    name: str
    target: Target
    bindings: Mapping[str, Binding]
    affine_weight_limit: int | None
    measures_latency: bool
    same_roundings: bool

    @property
    def machine(self) -> str:
        """Identifies the machine: times measured under the same text are comparable."""
        ...

    def weight_scale_floor(
        self, layer: nn.Module, weight: Tensor, top: Tensor | None, rounding: float = 0.5
    ) -> Tensor | None:
        """The smallest weight scale per output channel that the kernels compute exactly; None: no limit.

        Args:
            layer: the float layer.
            weight: fp32, of that layer or in its place.
            top: the largest input integer per input channel; None: 255 everywhere.
            rounding: how many steps an integer may be away from its weight.
        """
        ...

    def graph_forms(self, gm: fx.GraphModule) -> list[Callable[..., Any]]:
        """What can run a graph of dynamic layers, fastest first."""
        ...

    def latencies(self, program: FrozenProgram) -> Latencies | None:
        """Times of the int8 ops of a program and of the values between them; None if it measures none."""
        ...

    def lower(self, program: FrozenProgram, layers: Mapping[nn.Module, DynamicLayer]) -> Lowered:
        """Turn a program into something that runs. The program is not changed.

        Args:
            layers: what runs each dynamic layer of the program.
        """
        ...


def binding_of(backend: Backend, row: OpRow) -> Binding:
    """What ``backend`` can do with the op of ``row``."""
    return binding_named(backend, row.name)


def binding_named(backend: Backend, name: str) -> Binding:
    """What ``backend`` can do with the op called ``name``."""
    return backend.bindings.get(name) or Binding(False, f"the {backend.name} backend has no int8 kernel for it")
