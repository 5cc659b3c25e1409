"""What a backend is: a table with one row per op, and a function from the frozen graph to something callable."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, fx, nn

from ..compiler.qdq import dequantize_channels
from ..compiler.types import QParams, ValueInfo

if TYPE_CHECKING:
    from .dynamic import DynamicLayer, Layer


class Output(enum.Enum):
    """How the output of an op gets its qparams."""

    OBSERVED = "from an observer"
    SHARED = "those of its input"
    FIXED = "a known range"
    WEIGHT_ONLY = "none: the weight is int8, input and output are not"
    FLOAT = "none: the op runs in fp32"
    META = "none: the value is a size, not a tensor"


@dataclass(frozen=True)
class Call:
    """One use of an op, as an op's rule may ask about it."""

    node: fx.Node
    module: nn.Module | None
    values: Mapping[fx.Node, ValueInfo]

    @property
    def input(self) -> ValueInfo | None:
        """What is known of the first tensor input."""
        return next((self.values[n] for n in self.node.all_input_nodes if n in self.values), None)

    def param(self, name: str, default: Any = None) -> Any:
        """A parameter of the call by name, in either of its forms."""
        return getattr(self.module, name, default) if self.module else self.node.kwargs.get(name, default)


@dataclass(frozen=True)
class IntegerWeight:
    """A quantized weight: ``integers`` (int8, the weight's shape), and a scale and zero point each along ``axis``.

    One scale and zero point in all where the weight is quantized per tensor.
    """

    integers: Tensor
    scale: Tensor
    zero_point: Tensor
    axis: int

    @property
    def bytes(self) -> int:
        """Of the integers and their fp32 scales."""
        return self.integers.numel() + 4 * self.scale.numel()

    def dequantized(self) -> Tensor:
        """The fp32 values that the integers stand for, images in channels_last."""
        values = dequantize_channels(self.integers, self.scale, self.zero_point, self.axis)
        return values.contiguous(memory_format=torch.channels_last) if values.dim() == 4 else values


@dataclass(frozen=True, eq=False)
class OpRule:
    """Everything that is known of an op: one row of the table.

    Attributes:
        name: the op's name in reports and overrides.
        canonical: the one spelling after capture: a function, or an ``nn.Module`` class where the op has
            parameters.
        spellings: further functions, module classes and method names that mean the same.
        params: names of what follows the tensor inputs, in positional order.
        inputs: number of tensor inputs; 0 means a list of tensors as the first argument.
        from_module: the parameters of a module of this op, where they are not its attributes of the same names.
        output: how the output gets its qparams.
        fixed: the qparams for ``Output.FIXED``.
        weighted: has a weight that is quantized. Only such ops are worth a region of int8.
        functional: for a weighted module, the function that the frozen graph calls in its place.
        channel_axis: axis of the output channels in the weight.
        per_channel: the kernels take a scale per output channel; without it there is one scale for all.
        multiple: gives several tensors (chunk, split), each of which is picked by a getitem.
        keeps_channels: a pass-through whose axis 1 is that of its input.
        views: its output may share the memory of its input.
        joins: its inputs and output share one set of qparams, so that nothing is rounded again.
        clamp: for an op that is a clamp, its bounds in a given call.
        saturates: the output is requantized, so that a clamp behind it is done by saturation.
        float_output: has a kernel that gives fp32, so that its output needs no qparams.
        scale_equivariant: ``f(s * x) == s * f(x)`` for a positive scale per channel, all tensor inputs scaled alike.
        product: it scales with each of its inputs on its own.
        affine: for a module whose ``weight`` and ``bias`` scale and shift its output, the axis they do it along.
        noop: whether a given call does nothing at inference.
        refuse: a reason why this very call cannot be int8, or None.
        prefer_float: why int8 is not the default although a kernel exists; an override still asks for it.
        reason: why there is no int8 form, for ``Output.FLOAT``.
        dynamic: the backend's own: what makes the layer with fp32 in and out and int8 or fp16 weights; None where there
            is nothing.
        refuse_dynamic: a reason why this very module has none.
        kernels: the backend's own: how the op is lowered.
        fused: the same for the op with another behind it, by that op's name, without a rounding between them.
    """

    name: str
    canonical: Any
    spellings: tuple[Any, ...] = ()
    params: str = ""
    inputs: int = 1
    from_module: Callable[[Any], dict[str, Any]] | None = None
    output: Output = Output.OBSERVED
    fixed: QParams | None = None
    weighted: bool = False
    functional: Callable[..., Any] | None = None
    channel_axis: int = 0
    per_channel: bool = True
    multiple: bool = False
    keeps_channels: bool = False
    views: bool = False
    joins: bool = False
    clamp: Callable[[Call], tuple[float, float]] | None = None
    saturates: bool = False
    float_output: bool = False
    scale_equivariant: bool = False
    product: bool = False
    affine: int | None = None
    noop: Callable[[Call], bool] | None = None
    refuse: Callable[[Call], str | None] | None = None
    prefer_float: str = ""
    reason: str = ""
    dynamic: Any = None
    refuse_dynamic: Callable[[nn.Module], str | None] | None = None
    kernels: Any = None
    fused: Mapping[str, Any] = field(default_factory=dict)

    @property
    def param_names(self) -> tuple[str, ...]:
        return tuple(self.params.split())


class OpTable:
    """The rows of a backend, found by any of their spellings."""

    def __init__(self, rows: Sequence[OpRule]) -> None:
        self.rows = tuple(rows)
        self._by_spelling: dict[Any, OpRule] = {}
        self._by_name: dict[str, OpRule] = {}
        for row in rows:
            self._by_name[row.name] = row
            for spelling in (row.canonical, row.functional, *row.spellings):
                if spelling is not None:
                    self._by_spelling.setdefault(spelling, row)

    def __getitem__(self, name: str) -> OpRule:
        return self._by_name[name]

    def find(self, spelling: Any) -> OpRule | None:
        """The row that ``spelling`` (a function, a module class or a method's name) belongs to."""
        try:
            return self._by_spelling.get(spelling)
        except TypeError:  # unhashable
            return None

    def of(self, node: fx.Node, modules: Mapping[str, nn.Module]) -> OpRule | None:
        """The row of a node of a captured or a frozen graph."""
        if node.op == "call_module":
            return self.find(type(modules[str(node.target)]))
        return self.find(node.target) if node.op in ("call_function", "call_method") else None


@dataclass(frozen=True)
class Target:
    """The CPU to compile for.

    Attributes:
        vnni: int8 products are accumulated in 32 bits (AVX512-VNNI or AVX-VNNI). Without it, pairs of them are
            added in 16 bits with saturation (``vpmaddubsw``), and weights must leave room for that.
    """

    vnni: bool


@dataclass(frozen=True)
class Frozen:
    """A frozen graph: literal quantize and dequantize around float ops, and the example it was run on.

    ``fp32`` are the ops that stay in fp32 although they may stand between a dequantize and a quantize. ``trained``:
    with its roundings, so that a backend is to keep every one of them.
    """

    module: fx.GraphModule
    example_args: tuple[Any, ...]
    example_kwargs: Mapping[str, Any] = field(default_factory=dict)
    fp32: frozenset[fx.Node] = frozenset()
    trained: bool = False


@dataclass(frozen=True)
class Lowered:
    """A backend's result.

    Attributes:
        run: takes what the model's forward takes.
        frozen: the frozen graph as executed (fusions that drop a rounding are visible in it).
        kernels: what each node of that graph became; nodes that a kernel swallowed are left out.
        weight_bytes: bytes of parameters in the executed form.
        apart: takes inputs of the model, and tells by ``quantize`` node of the frozen graph how many steps the kernel
            is from it, given the same integers; None where the frozen graph itself is executed.
    """

    run: Callable[..., Any]
    frozen: Frozen
    kernels: Mapping[fx.Node, str]
    weight_bytes: int
    apart: Callable[..., Mapping[fx.Node, int]] | None = None


@dataclass(frozen=True)
class Latencies:
    """Milliseconds on this machine: of ops, by the names of their first nodes, in either precision; of conversions.

    ``quantize`` and ``dequantize`` are by the name of the value that is converted. ``fused`` has, by the name of an op
    that is best fused into the one before it, the name of that one: apart, a value would be rounded between them.
    """

    int8: dict[str, float]
    fp32: dict[str, float]
    quantize: dict[str, float]
    dequantize: dict[str, float]
    fused: dict[str, str]


class Backend(Protocol):
    """A table of ops and a lowering of frozen graphs."""

    name: str
    table: OpTable
    target: Target

    def weight_scale_floor(
        self, layer: nn.Module, weight: Tensor, top: Tensor | None, rounding: float = 0.5
    ) -> Tensor | None:
        """Smallest weight scale per output channel that the kernels of this target compute exactly.

        ``top`` holds the largest input integer seen per input channel; None, all 255. ``rounding`` is how many steps
        an integer may be off its weight. None: no restriction.
        """
        ...

    def dynamic(self, layer: Layer) -> DynamicLayer:
        """What takes the place of a float layer of which ``layer.rule.dynamic`` has the type of weights."""
        ...

    def graph_forms(self, gm: fx.GraphModule) -> list[Callable[..., Any]]:
        """What runs a graph whose layers are those of :meth:`dynamic`, fastest first."""
        ...

    def latencies(self, frozen: Frozen) -> Latencies | None:
        """Those of the int8 ops of a frozen graph and of the values between them; None where nothing is measured."""
        ...

    def lower(self, frozen: Frozen) -> Lowered:
        """Turn a frozen graph into something that runs."""
        ...
