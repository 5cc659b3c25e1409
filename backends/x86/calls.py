"""An int8 call as the kernels see it, and the candidates that can carry it out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...compiler.types import QParams
from ..base import IntegerWeight
from .emitter import Emitter
from .engine import FBGEMM, available
from .engine import engine as set_engine


@dataclass(frozen=True)
class Operand:
    """A tensor input: its qparams (None: fp32) and the shape it had in the example."""

    qparams: QParams | None
    shape: tuple[int, ...]


def qint8(weight: IntegerWeight) -> Tensor:
    """``weight`` as torch's quantized tensor, per tensor where there is one scale."""
    if weight.scale.numel() == 1:
        return torch._make_per_tensor_quantized_tensor(weight.integers, float(weight.scale), int(weight.zero_point))
    return torch._make_per_channel_quantized_tensor(
        weight.integers, weight.scale.double(), weight.zero_point.long(), weight.axis
    )


@dataclass(frozen=True)
class Int8Call:
    """One op to be lowered.

    Attributes:
        op: its name in the table.
        node: the op in the frozen graph.
        inputs: its tensor inputs.
        out: qparams of the output; None where it is fp32.
        clamp: bounds of the clamps behind it, which are part of the call.
        weight, bias: of a conv, linear, ...; None for other ops.
        module: of an op with other parameters (a norm, prelu).
        epilogue: name and node of an op that is fused behind it without a rounding in between.
        packed: weights packed so far, by engine.
    """

    op: str
    node: fx.Node
    inputs: tuple[Operand, ...]
    out: QParams | None
    clamp: tuple[float, float] | None = None
    weight: IntegerWeight | None = None
    bias: Tensor | None = None
    module: nn.Module | None = None
    epilogue: tuple[str, fx.Node] | None = None
    packed: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def kwargs(self) -> dict[str, Any]:
        return {k: v for k, v in self.node.kwargs.items() if k not in ("bias", "input", "weight")}

    def option(self, name: str, default: int, dims: int) -> list[int]:
        """A convolution's option as a list of ``dims`` integers."""
        value = self.node.kwargs.get(name, default)
        return [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)] * dims  # type: ignore[arg-type]

    def pack(self, engine: str, pack: Callable[[Tensor, Tensor | None], Any], key: str = "") -> Any:
        """The weight packed by ``pack`` for ``engine``, once for each ``key``."""
        key = key or engine
        if key not in self.packed:
            assert self.weight is not None
            with set_engine(engine):
                self.packed[key] = pack(qint8(self.weight), self.bias)
        return self.packed[key]

    @property
    def result(self) -> QParams:
        assert self.out is not None
        return self.out

    def signature(self) -> str:
        """What a kernel's speed depends on, as a key."""
        parts: list[Any] = [self.op, [o.shape for o in self.inputs], sorted(map(str, self.kwargs.items()))]
        if self.weight is not None:
            parts.append((tuple(self.weight.integers.shape), self.weight.scale.numel() > 1))
        parts += [self.epilogue and self.epilogue[0], self.out is None]
        return repr(parts)


@dataclass(frozen=True)
class Candidate:
    """One way to run a call: the kernel's name, and how to emit it given the input nodes.

    ``inputs`` in place of the call's, for what is only measured beside it.
    """

    kernel: str
    build: Callable[[Emitter, Sequence[fx.Node]], fx.Node]
    inputs: tuple[Operand, ...] | None = None


def engines_for(call: Int8Call) -> tuple[str, ...]:
    """Engines whose kernels take this weight: oneDNN knows no zero points of weights."""
    assert call.weight is not None
    symmetric = not bool(call.weight.zero_point.any())
    return tuple(e for e in available() if e == FBGEMM or symmetric)


def clamped(emitter: Emitter, call: Int8Call, node: fx.Node) -> fx.Node:
    """``node`` with the call's clamp applied, unless saturation does it already."""
    if call.clamp is None or call.result.clamps_to(*call.clamp):
        return node
    low, high = (None if abs(b) == float("inf") else b for b in call.clamp)
    return emitter.call(torch.ops.aten.clamp.default, node, low, high)


Kernels = Callable[[Int8Call], list[Candidate]]
