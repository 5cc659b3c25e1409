"""An int8 call as the kernels see it, and the candidates that can run it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from ....compiler.core.qparams import QParams
from ...base.weights import IntegerWeight
from ..codegen.emitter import Emitter
from ..runtime.cpu import has_vnni
from ..runtime.engine import ONEDNN, Engine, available, run_under

Arithmetic = Literal["fbgemm", "onednn", "torch", "fp32"]


@dataclass(frozen=True)
class Operand:
    """A tensor input: its qparams (None: fp32) and its shape on the example."""

    qparams: QParams | None
    shape: tuple[int, ...]


def qint8(weight: IntegerWeight) -> Tensor:
    """``weight`` as a quantized tensor of torch; per tensor if there is one scale."""
    if weight.scale.numel() == 1:
        return torch._make_per_tensor_quantized_tensor(weight.integers, float(weight.scale), int(weight.zero_point))
    return torch._make_per_channel_quantized_tensor(
        weight.integers, weight.scale.double(), weight.zero_point.long(), weight.axis
    )


@dataclass(frozen=True)
class Int8Call:
    """One op to be lowered.

    Attributes:
        op: the name of the op.
        node: the op in the program.
        inputs: its tensor inputs.
        out: qparams of the output; None if it is fp32.
        clamp: bounds of the clamps after it, which are part of the call.
        weight, bias: of a layer; None for other ops.
        module: of an op with other parameters (a normalization, prelu).
        epilogue: name and node of an op that is fused after it, without a rounding between them.
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
        """An option of a convolution as a list of ``dims`` integers."""
        value = self.node.kwargs.get(name, default)
        return [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)] * dims  # type: ignore[arg-type]

    def pack(self, engine: str, pack: Callable[[Tensor, Tensor | None], Any], key: str = "") -> Any:
        """The weight packed by ``pack`` under ``engine``; packed once for each ``key`` (default: the engine)."""
        key = key or engine
        if key not in self.packed:
            assert self.weight is not None
            self.packed[key] = run_under(engine, pack, qint8(self.weight), self.bias)
        return self.packed[key]

    @property
    def is_depthwise(self) -> bool:
        """Whether it is a convolution with one input channel per group, over two or three axes."""
        shape = self.weight.integers.shape if self.weight is not None else ()
        return len(shape) > 3 and self.kwargs.get("groups", 1) > 1 and shape[1] == 1

    @property
    def result(self) -> QParams:
        """The qparams of an int8 output."""
        assert self.out is not None
        return self.out

    def signature(self) -> str:
        """What the speed of a kernel depends on, as a key."""
        parts: list[Any] = [self.op, [o.shape for o in self.inputs], sorted(map(str, self.kwargs.items()))]
        if self.weight is not None:
            known = self.weight
            parts.append((tuple(known.integers.shape), known.scale.numel() > 1, bool(known.zero_point.any())))
        clamps = self.clamp is not None and (self.out is None or not self.out.clamps_to(*self.clamp))
        parts += [self.epilogue and self.epilogue[0], self.out is None, self.bias is None, clamps]
        return repr(parts)


@dataclass(frozen=True)
class Candidate:
    """One way to run a call.

    Attributes:
        kernel: its name.
        build: emits it, given the input nodes.
        inputs: its inputs, if they are not those of the call: such a candidate is only measured.
        arithmetic: kernels of the same call with the same text here give the same integers.
    """

    kernel: str
    build: Callable[[Emitter, Sequence[fx.Node]], fx.Node]
    inputs: tuple[Operand, ...] | None = None
    arithmetic: Arithmetic = "torch"

    @property
    def precision(self) -> Literal["int8", "fp32"]:
        """What it computes in."""
        return "fp32" if self.arithmetic == "fp32" else "int8"


def engines_for(call: Int8Call) -> tuple[Engine, ...]:
    """The engines whose kernels compute exactly with this weight. oneDNN takes no zero points of weights."""
    assert call.weight is not None
    symmetric = not bool(call.weight.zero_point.any())
    return tuple(e for e in available() if (symmetric if e == ONEDNN else not _saturates(call)))


def _saturates(call: Int8Call) -> bool:
    """Whether fbgemm's kernel may overflow: depthwise ones add pairs in 16 bits, and VNNI sets weights no limit."""
    return has_vnni() and call.is_depthwise


def clamped(emitter: Emitter, call: Int8Call, node: fx.Node) -> fx.Node:
    """``node`` after the clamp of the call, unless saturation does the same."""
    if call.clamp is None or call.result.clamps_to(*call.clamp):
        return node
    low, high = (None if abs(b) == float("inf") else b for b in call.clamp)
    return emitter.call(torch.ops.aten.clamp.default, node, low, high)


Kernels = Callable[[Int8Call], list[Candidate]]
