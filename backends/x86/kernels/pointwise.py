"""Elementwise ops, normalizations, joins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..codegen.emitter import Emitter
from ..runtime import torch_ops  # noqa: F401  (defines torch.ops.fxquant)
from ..runtime.engine import QNNPACK
from .calls import Candidate, Int8Call, Kernels, clamped

Q = torch.ops.quantized


def elementwise(op: Any, *params: str, extra: Callable[[Int8Call], tuple[Any, ...]] | None = None) -> Kernels:
    """``op(x, *params, scale, zero_point)``; ``extra`` gives the arguments between the input and the scale."""

    def candidates(call: Int8Call) -> list[Candidate]:
        def build(emitter: Emitter, inputs: Sequence[fx.Node]) -> fx.Node:
            between = extra(call) if extra else tuple(call.kwargs[p] for p in params)
            args = tuple(emitter.constant(a.detach(), "parameter") if isinstance(a, Tensor) else a for a in between)
            result = emitter.call(op, inputs[0], *args, call.result.scale, call.result.zero_point)
            return clamped(emitter, call, result)

        return [Candidate(f"{op._schema.name}", build)]

    return candidates


def binary(op: Any) -> Kernels:
    """``op(a, b, scale, zero_point)`` of two tensors in any order, or of a tensor and a number."""

    def candidates(call: Int8Call) -> list[Candidate]:
        order = _large_first(call)
        if order is None:
            return []

        def plain(emitter: Emitter, inputs: Sequence[fx.Node]) -> fx.Node:
            pair = [inputs[i] for i in order]
            if len(pair) == 1:
                pair.append(emitter.constant(_number(call.node), "number"))
            result = emitter.call(op, *pair, call.result.scale, call.result.zero_point)
            return clamped(emitter, call, result)

        def spread(emitter: Emitter, inputs: Sequence[fx.Node]) -> fx.Node:
            pair = list(inputs)
            small = 0 if gate == 0 else 1
            wide = emitter.graph.call_method("expand_as", (pair[small], pair[1 - small]))
            pair[small] = emitter.image(wide)
            return plain(emitter, pair)

        found = [Candidate(op._schema.name, plain)]
        gate = _gate(call)
        if gate is not None:
            # With one value per channel the kernel runs pixel by pixel.
            found.append(Candidate(f"{op._schema.name} (gate spread)", spread))
        return found

    return candidates


def _large_first(call: Int8Call) -> list[int] | None:
    """The inputs, first the one that has the shape of the output, as the kernels need it; None if none has."""
    shapes = [o.shape for o in call.inputs]
    out = torch.broadcast_shapes(*shapes)
    order = sorted(range(len(shapes)), key=lambda i: shapes[i] != out)
    return order if shapes[order[0]] == out else None


def _gate(call: Int8Call) -> int | None:
    """The input that has one value per channel (``N x C x 1 x 1``) where the other is an image; None if neither."""
    if len(call.inputs) != 2 or any(len(o.shape) != 4 for o in call.inputs):
        return None
    for i in (0, 1):
        small, large = call.inputs[i].shape, call.inputs[1 - i].shape
        if small[2:] == (1, 1) and large[2:] != (1, 1) and small[1] == large[1]:
            return i
    return None


def _number(node: fx.Node) -> Tensor:
    """A number as a quint8 tensor of one element, exactly."""
    value = float(next(a for a in node.args if not isinstance(a, fx.Node)))  # type: ignore[arg-type]
    integer, zero_point = (1, 0) if value >= 0 else (0, 1)
    scale = abs(value) or 1.0
    integer = integer if value else 0
    return torch._make_per_tensor_quantized_tensor(torch.tensor([integer], dtype=torch.uint8), scale, zero_point)


def elementwise_pair(op: Any) -> Kernels:
    """``op(a, b, scale, zero_point)`` of two tensors."""

    def candidates(call: Int8Call) -> list[Candidate]:
        def build(emitter: Emitter, inputs: Sequence[fx.Node]) -> fx.Node:
            return emitter.call(op, *inputs, call.result.scale, call.result.zero_point)

        return [Candidate(op._schema.name, build)]

    return candidates


def fixed(op: Any) -> Kernels:
    """``op(x)``, whose output has fixed qparams."""

    def candidates(call: Int8Call) -> list[Candidate]:
        return [Candidate(op._schema.name, lambda emitter, inputs: emitter.call(op, inputs[0]))]

    return candidates


def elu(call: Int8Call) -> list[Candidate]:
    """``quantized::elu``, whose parameter is after the qparams."""

    def build(emitter: Emitter, inputs: Sequence[fx.Node]) -> fx.Node:
        args = (call.result.scale, call.result.zero_point, call.kwargs.get("alpha", 1.0))
        return clamped(emitter, call, emitter.call(Q.elu.default, inputs[0], *args))

    return [Candidate("quantized::elu", build)]


def silu(call: Int8Call) -> list[Candidate]:
    """``x * sigmoid(x)``. QNNPACK takes the sigmoid of an integer from a table of 256 values."""

    def build(emitter: Emitter, inputs: Sequence[fx.Node]) -> fx.Node:
        known = call.result
        result = emitter.call(torch.ops.fxquant.silu.default, inputs[0], known.scale, known.zero_point)
        return clamped(emitter, call, result)

    if QNNPACK not in torch.backends.quantized.supported_engines:
        return []
    return [Candidate("sigmoid (qnnpack) + quantized::mul", build)]


def cat(call: Int8Call) -> list[Candidate]:
    """Concatenation. Inputs with other qparams are requantized. ``stack`` adds the axis first."""
    stacked = call.op == "stack"

    def build(emitter: Emitter, inputs: Sequence[fx.Node]) -> fx.Node:
        dim = int(call.kwargs.get("dim", 0))
        if stacked:
            inputs = [emitter.call(torch.ops.aten.unsqueeze.default, x, dim) for x in inputs]
        args = (list(inputs), dim, call.result.scale, call.result.zero_point)
        return emitter.call(Q.cat.default, *args)

    return [Candidate("quantized::cat", build)]


def batch_norm(op: Any) -> Kernels:
    """Batch normalization that is not folded into a layer."""

    def candidates(call: Int8Call) -> list[Candidate]:
        def build(emitter: Emitter, inputs: Sequence[fx.Node]) -> fx.Node:
            bn: Any = call.module
            parts = [
                None if t is None else emitter.constant(t.detach(), "batch_norm")
                for t in (bn.weight, bn.bias, bn.running_mean, bn.running_var)
            ]
            args = (*parts, bn.eps, call.result.scale, call.result.zero_point)
            return clamped(emitter, call, emitter.call(op, inputs[0], *args))

        return [Candidate(op._schema.name, build)]

    return candidates
