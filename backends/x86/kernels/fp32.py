"""The kernel that every op has: compute in fp32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate

from ....compiler.core.qparams import QParams
from ....compiler.numerics.quantize import dequantize_channels
from ..codegen.emitter import Emitter
from .calls import Candidate, Int8Call, Operand

FP32 = "fp32 between dequantize and quantize"
FP32_ENTRY = "fp32 on unrounded inputs"


def in_fp32(call: Int8Call) -> Candidate:
    """Dequantize the int8 inputs, compute in fp32, quantize the output if the call has qparams for it."""
    entry = all(o.qparams is None for o in call.inputs)

    def build(emitter: Emitter, inputs: Sequence[fx.Node]) -> fx.Node:
        def as_float(x: fx.Node, operand: Operand) -> fx.Node:
            if operand.qparams is not None:
                return emitter.dequantize(x)
            return emitter.image(x) if entry and len(operand.shape) == 4 else x

        values = iter([as_float(x, o) for x, o in zip(inputs, call.inputs, strict=True)])
        weight = call.weight

        def replace_node(value: Any) -> Any:
            if not isinstance(value, fx.Node):
                return value
            if weight is not None and value.target is dequantize_channels:
                return emitter.late_constant(weight.dequantized, "weight")
            if weight is not None and value is call.node.kwargs.get("bias"):
                return emitter.constant(call.bias, "bias")
            return next(values)

        args = map_aggregate(call.node.args, replace_node)
        kwargs = map_aggregate(call.node.kwargs, replace_node)
        if call.module is not None:
            result = emitter.module(call.module, args, kwargs)
        elif call.node.op == "call_method":
            result = emitter.graph.call_method(str(call.node.target), args, kwargs)
        else:
            result = emitter.call(call.node.target, *args, **kwargs)  # type: ignore[arg-type]
        if call.clamp is not None:
            result = emitter.call(torch.clamp, result, *call.clamp)
        return result if call.out is None else emitter.quantize(result, call.out)

    return Candidate(FP32_ENTRY if entry else FP32, build, arithmetic="fp32")


def quantized_entry(call: Int8Call, inner: Candidate, known: Sequence[QParams]) -> Candidate:
    """``inner`` after the quantization of its fp32 inputs: the alternative to computing on unrounded inputs."""

    def build(emitter: Emitter, inputs: Sequence[fx.Node]) -> fx.Node:
        rounded = [emitter.quantize(x, k, channels_last=True) for x, k in zip(inputs, known, strict=True)]
        return inner.build(emitter, rounded)

    return replace(inner, kernel=f"quantize + {inner.kernel}", build=build)


def no_kernels(call: Int8Call) -> list[Candidate]:
    """No int8 kernel: :func:`in_fp32` is the only candidate."""
    return []
