"""What an op means: one row per op, found by any spelling."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from ...compiler.core.qparams import QParams
from ...compiler.execution.shapes import ValueInfo


class Output(enum.Enum):
    """How the output of an int8 op gets its qparams."""

    OBSERVED = "from an observer"
    SHARED = "those of its input"
    FIXED = "a known range"
    WEIGHT_ONLY = "none: the weight is int8, input and output are not"
    FLOAT = "none: the op is always fp32"
    META = "none: the value is a size, not a tensor"


@dataclass(frozen=True)
class Call:
    """One call of an op, as a row or a binding may ask about it.

    Attributes:
        node: the call in the graph.
        module: the module that it calls, if any.
        values: shape and dtype of every value of the graph.
    """

    node: fx.Node
    module: nn.Module | None
    values: Mapping[fx.Node, ValueInfo]

    @property
    def input(self) -> ValueInfo | None:
        """Shape and dtype of the first tensor input, if known."""
        return next((self.values[n] for n in self.node.all_input_nodes if n in self.values), None)

    def param(self, name: str, default: Any = None) -> Any:
        """A parameter of the call by name, from the module or from the arguments."""
        return getattr(self.module, name, default) if self.module else self.node.kwargs.get(name, default)


@dataclass(frozen=True, eq=False)
class OpRow:
    """The meaning of an op. What runs it is the :class:`~.binding.Binding` of a backend.

    Attributes:
        name: the name of the op in reports, overrides and bindings.
        canonical: the one spelling after capture: a function, or a module class if the op has parameters.
        spellings: further functions, module classes and method names with the same meaning.
        params: names of the arguments after the tensor inputs, in positional order, separated by spaces.
        inputs: number of tensor inputs; 0 is a list of tensors as the first argument.
        from_module: the parameters of a module of this op, if they are not its attributes of the same names.
        output: how the output gets its qparams.
        fixed: the qparams for ``Output.FIXED``.
        weighted: has a weight that is quantized. Only such ops are worth a region of int8.
        functional: of a weighted op, the function that the frozen graph calls in place of the module.
        channel_axis: axis of the output channels in the weight.
        channels_last: the output channels are the last axis of the output; False: axis 1.
        multiple: returns several tensors (chunk, split); a getitem picks each.
        keeps_channels: a pass-through op whose channels (axis 1) are those of its input.
        views: the output may share the memory of the input.
        joins: inputs and output share one set of qparams, so that nothing is rounded again.
        clamp: of an op that is a clamp, the bounds in a given call.
        saturates: the output is requantized, so that saturation does the work of a clamp after it.
        scale_equivariant: ``f(s * x) == s * f(x)`` for a positive scale per channel, the same for all tensor inputs.
        product: the output scales with each input separately.
        affine: of a module whose ``weight`` and ``bias`` scale and shift the output, the axis of both.
        batch_norm: a batch normalization, which can be folded into the layer before it.
        noop: whether a given call does nothing at inference.
        refuse: the reason why a given call cannot be int8, or None.
        reason: why the op is always fp32, for ``Output.FLOAT``.
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
    channels_last: bool = False
    multiple: bool = False
    keeps_channels: bool = False
    views: bool = False
    joins: bool = False
    clamp: Callable[[Call], tuple[float, float]] | None = None
    saturates: bool = False
    scale_equivariant: bool = False
    product: bool = False
    affine: int | None = None
    batch_norm: bool = False
    noop: Callable[[Call], bool] | None = None
    refuse: Callable[[Call], str | None] | None = None
    reason: str = ""

    @property
    def param_names(self) -> tuple[str, ...]:
        return tuple(self.params.split())


class OpTable:
    """Rows, found by any of their spellings."""

    def __init__(self, rows: Sequence[OpRow]) -> None:
        self.rows = tuple(rows)
        self._by_spelling: dict[Any, OpRow] = {}
        for row in rows:
            for spelling in (row.canonical, row.functional, *row.spellings):
                if spelling is not None:
                    self._by_spelling.setdefault(spelling, row)

    def find(self, spelling: Any) -> OpRow | None:
        """The row of ``spelling``: a function, a module class or the name of a method."""
        try:
            return self._by_spelling.get(spelling)
        except TypeError:  # unhashable
            return None

    def of(self, node: fx.Node, modules: Mapping[str, nn.Module]) -> OpRow | None:
        """The row of a node of a captured or frozen graph; ``modules`` are those of the graph by path."""
        if node.op == "call_module":
            return self.find(type(modules[str(node.target)]))
        return self.find(node.target) if node.op in ("call_function", "call_method") else None
