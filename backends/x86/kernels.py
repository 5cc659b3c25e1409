"""Candidates for each kind of call, on ``torch.ops.quantized`` and ``torch.ops.onednn``.

A function here takes an :class:`Int8Call` and returns its candidates; rows of the table name the function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from ...compiler.qdq import dequantize_channels
from . import ops  # noqa: F401  (defines torch.ops.fxquant)
from .calls import Candidate, Int8Call, clamped
from .emitter import Emitter
from .engine import FBGEMM, ONEDNN, QNNPACK, available

Q = torch.ops.quantized
Kernels = Callable[[Int8Call], list[Candidate]]


def engines_for(call: Int8Call) -> tuple[str, ...]:
    """Engines whose kernels take this weight: oneDNN knows no zero points of weights."""
    assert call.weight is not None
    symmetric = not bool(call.weight.zero_point.any())
    return tuple(e for e in available() if e == FBGEMM or symmetric)


def conv(dims: int, transposed: bool = False) -> Kernels:
    """Convolution over ``dims`` axes of space."""
    name = f"conv_transpose{dims}d" if transposed else f"conv{dims}d"
    packet = getattr(Q, name)
    # The default overload of conv2d and conv3d still takes the options that packing has taken in.
    op = packet.new if "new" in packet.overloads() else packet.default
    prepack = getattr(Q, f"{name}_prepack").default

    def pack(call: Int8Call, engine: str) -> Any:
        options = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1}
        if not transposed:
            del options["output_padding"]
        lists = [call.option(n, d, dims) for n, d in options.items()]
        groups = int(call.kwargs.get("groups", 1))
        return call.pack(engine, lambda w, b: prepack(w, b, *lists, groups))

    def candidates(call: Int8Call) -> list[Candidate]:
        found = []
        for engine in engines_for(call):
            if engine == ONEDNN and any(call.option("output_padding", 0, dims)):
                continue  # oneDNN's packing refuses it

            def build(emitter: Emitter, inputs: Sequence[fx.Node], engine: str = engine) -> fx.Node:
                packed = emitter.constant(pack(call, engine), name)
                args = (inputs[0], packed, call.result.scale, call.result.zero_point)
                return clamped(emitter, call, emitter.call(op, *args))

            found.append(Candidate(f"quantized::{name} ({engine})", build))
        return found

    return candidates


def conv_transpose(dims: int) -> Kernels:
    """Transposed convolution.

    Kernels of both engines give wrong results for some shapes (torch 2.13; fbgemm for a window of 2, oneDNN where
    the numbers of channels differ), which the tuner finds out. Hence two more ways: where windows do not overlap,
    a pointwise convolution to all pixels of the window and a pixel shuffle; and fp32.
    """
    direct = conv(dims, transposed=True)

    def candidates(call: Int8Call) -> list[Candidate]:
        found = [*direct(call), in_fp32(call)]
        assert call.weight is not None
        window = list(call.weight.integers.shape[2:])
        apart = window == call.option("stride", 1, dims) and len(set(window)) == 1 and window[0] > 1
        plain = not any(call.option("padding", 0, dims) + call.option("output_padding", 0, dims))
        if dims == 2 and apart and plain and set(call.option("dilation", 1, dims)) == {1}:
            found += [_shuffled(call, engine, window[0]) for engine in engines_for(call)]
        return found

    return candidates


def _shuffled(call: Int8Call, engine: str, factor: int) -> Candidate:
    def pack(_: Tensor, bias: Tensor | None) -> Any:
        weight = call.weight
        assert weight is not None
        pointwise = weight.integers.permute(1, 2, 3, 0).flatten(0, 2)[:, :, None, None].contiguous()
        wide = None if bias is None else bias.repeat_interleave(factor**2)
        whole = replace(weight, integers=pointwise, axis=0).quantized()
        return Q.conv2d_prepack(whole, wide, [1, 1], [0, 0], [1, 1], 1)

    def build(emitter: Emitter, inputs: Sequence[fx.Node]) -> fx.Node:
        packed = emitter.constant(call.pack(engine, pack, f"shuffled {engine}"), "conv2d")
        pixels = emitter.call(Q.conv2d.new, inputs[0], packed, call.result.scale, call.result.zero_point)
        shuffled = emitter.call(torch.ops.aten.pixel_shuffle.default, pixels, factor)
        whole = emitter.graph.call_method("contiguous", (shuffled,), {"memory_format": torch.channels_last})
        return clamped(emitter, call, whole)

    return Candidate(f"quantized::conv2d + pixel_shuffle ({engine})", build)


def conv2d_add(call: Int8Call) -> list[Candidate]:
    """Convolution plus a residual, which is overwritten: ``inputs`` are the image and the residual."""

    def build(emitter: Emitter, inputs: Sequence[fx.Node]) -> fx.Node:
        lists = [call.option(n, d, 2) for n, d in (("stride", 1), ("padding", 0), ("dilation", 1))]
        groups = int(call.kwargs.get("groups", 1))
        packed = call.pack(ONEDNN, lambda w, b: Q.conv2d_prepack(w, b, *lists, groups))
        relu = call.clamp is not None and call.clamp[0] == 0
        op = Q.conv2d_add_relu.default if relu else Q.conv2d_add.default
        args = (emitter.constant(packed, "conv2d"), call.result.scale, call.result.zero_point)
        return clamped(emitter, call, emitter.call_onednn(op, inputs[0], inputs[1], *args))

    usable = ONEDNN in engines_for(call)
    return [Candidate("quantized::conv2d_add (onednn)", build)] if usable else []


def conv2d_activation(attribute: str) -> Kernels:
    """Convolution with the activation as a post-op of oneDNN, so that nothing is rounded between them."""

    def candidates(call: Int8Call) -> list[Candidate]:
        if ONEDNN not in engines_for(call):
            return []
        weight, source, out = call.weight, call.inputs[0].qparams, call.result
        assert weight is not None and source is not None
        lists = [call.option(n, d, 2) for n, d in (("stride", 1), ("padding", 0), ("dilation", 1))]
        groups = int(call.kwargs.get("groups", 1))
        channels = weight.integers.shape[0]
        scale = weight.scale.expand(channels).contiguous()

        def build(emitter: Emitter, inputs: Sequence[fx.Node]) -> fx.Node:
            key = "onednn bytes"
            if key not in call.packed:
                call.packed[key] = torch.ops.onednn.qconv_prepack(
                    weight.integers,
                    scale,
                    source.scale,
                    source.zero_point,
                    *lists,
                    groups,
                    call.inputs[0].shape,
                )
            result = emitter.call(
                torch.ops.fxquant.conv2d_activation.default,
                inputs[0], emitter.constant(call.packed[key], "conv2d"), emitter.constant(scale, "scale"),
                emitter.constant(torch.zeros(channels, dtype=torch.int32), "zero_point"),
                emitter.constant(weight.bias, "bias") if weight.bias is not None else None,
                *lists, groups, out.scale, out.zero_point, attribute,
            )  # fmt: skip
            return clamped(emitter, call, result)

        return [Candidate(f"onednn::qconv2d_pointwise ({attribute})", build)]

    return candidates


def linear(call: Int8Call) -> list[Candidate]:
    """Linear with int8 in and int8 out; with fp32 out, quantization of the input is part of the kernel."""
    if call.out is None:
        return _linear_to_float(call)
    found = []
    for engine in engines_for(call):

        def build(emitter: Emitter, inputs: Sequence[fx.Node], engine: str = engine) -> fx.Node:
            args = (
                inputs[0],
                _packed_linear(emitter, call, engine),
                call.result.scale,
                call.result.zero_point,
            )
            return clamped(emitter, call, emitter.call(Q.linear.default, *args))

        found.append(Candidate(f"quantized::linear ({engine})", build))
    return found


def _linear_to_float(call: Int8Call) -> list[Candidate]:
    relu = call.clamp == (0.0, float("inf"))
    name = f"linear_with_input_q_dq_qweight_dq_{'relu_' if relu else ''}output_fp32"

    def build(emitter: Emitter, inputs: Sequence[fx.Node]) -> fx.Node:
        known = call.inputs[0].qparams
        assert known is not None
        packed = _packed_linear(emitter, call, FBGEMM)
        result = emitter.call(getattr(Q, name).default, inputs[0], known.scale, known.zero_point, packed)
        if call.clamp is not None and not relu:
            result = emitter.call(torch.ops.aten.clamp.default, result, *call.clamp)
        return result

    return [Candidate(f"quantized::{name} ({FBGEMM})", build)]


def linear_activation(op: Any, *params: str) -> Kernels:
    """Linear with an activation that oneDNN fuses: leaky_relu, tanh."""

    def candidates(call: Int8Call) -> list[Candidate]:
        if ONEDNN not in engines_for(call) or call.out is None:
            return []
        assert call.epilogue is not None
        extra = [call.epilogue[1].kwargs.get(p, 0.01) for p in params]

        def build(emitter: Emitter, inputs: Sequence[fx.Node]) -> fx.Node:
            packed = _packed_linear(emitter, call, ONEDNN)
            args = (inputs[0], packed, call.result.scale, call.result.zero_point, *extra)
            return clamped(emitter, call, emitter.call_onednn(op, *args))

        return [Candidate(f"{op._schema.name} ({ONEDNN})", build)]

    return candidates


def _packed_linear(emitter: Emitter, call: Int8Call, engine: str) -> fx.Node:
    return emitter.constant(call.pack(engine, Q.linear_prepack.default), "linear")


def elementwise(op: Any, *params: str, extra: Callable[[Int8Call], tuple[Any, ...]] | None = None) -> Kernels:
    """``op(x, *params, scale, zero_point)``; ``extra`` gives what stands between the input and the scale."""

    def candidates(call: Int8Call) -> list[Candidate]:
        def build(emitter: Emitter, inputs: Sequence[fx.Node]) -> fx.Node:
            between = extra(call) if extra else tuple(call.kwargs[p] for p in params)
            args = tuple(emitter.constant(a.detach(), "parameter") if isinstance(a, Tensor) else a for a in between)
            result = emitter.call(op, inputs[0], *args, call.result.scale, call.result.zero_point)
            return clamped(emitter, call, result)

        return [Candidate(f"{op._schema.name}", build)]

    return candidates


def binary(op: Any) -> Kernels:
    """``op(a, b, scale, zero_point)`` with two tensors, or a tensor and a number."""

    def candidates(call: Int8Call) -> list[Candidate]:
        def plain(emitter: Emitter, inputs: Sequence[fx.Node]) -> fx.Node:
            pair = list(inputs)
            if len(pair) == 1:
                pair.append(emitter.constant(_number(call.node), "number"))
            result = emitter.call(op, *pair, call.result.scale, call.result.zero_point)
            return clamped(emitter, call, result)

        def spread(emitter: Emitter, inputs: Sequence[fx.Node]) -> fx.Node:
            pair = list(inputs)
            small = 0 if gate == 0 else 1
            wide = emitter.graph.call_method("expand_as", (pair[small], pair[1 - small]))
            pair[small] = emitter.graph.call_method("contiguous", (wide,), {"memory_format": torch.channels_last})
            return plain(emitter, pair)

        found = [Candidate(op._schema.name, plain)]
        gate = _gate(call)
        if gate is not None:
            # A gate of one value per channel makes the kernel run one pixel at a time.
            found.append(Candidate(f"{op._schema.name} (gate spread)", spread))
        return found

    return candidates


def _gate(call: Int8Call) -> int | None:
    """Which input, if one, is a value per channel (``N x C x 1 x 1``) over an image of the other."""
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


def cat(call: Int8Call) -> list[Candidate]:
    """Concatenation; inputs with other qparams are requantized on the way. ``stack`` adds the axis first."""
    stacked = call.op == "stack"

    def build(emitter: Emitter, inputs: Sequence[fx.Node]) -> fx.Node:
        dim = int(call.kwargs.get("dim", 0))
        if stacked:
            inputs = [emitter.call(torch.ops.aten.unsqueeze.default, x, dim) for x in inputs]
        args = (list(inputs), dim, call.result.scale, call.result.zero_point)
        return emitter.call(Q.cat.default, *args)

    return [Candidate("quantized::cat", build)]


def batch_norm(op: Any) -> Kernels:
    """Batch normalisation that no layer could take in."""

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


def embedding(call: Int8Call) -> list[Candidate]:
    """Rows of uint8 with an fp32 scale each, given as fp32."""

    def build(emitter: Emitter, inputs: Sequence[fx.Node]) -> fx.Node:
        def pack(_: Tensor, __: Tensor | None) -> Any:
            assert call.weight is not None
            w = call.weight
            rows = w.integers.shape[0]
            # Stored unsigned: 128 more on both sides is the same value.
            shifted = (w.integers.to(torch.int16) + 128).to(torch.uint8)
            scale = w.scale.expand(rows).float().contiguous()
            zero = (w.zero_point.expand(rows) + 128).float().contiguous()
            return Q.embedding_bag_prepack(_rows(shifted, scale, zero))

        packed = emitter.constant(call.pack(FBGEMM, pack), "embedding")
        return emitter.call(Q.embedding_byte.default, packed, inputs[0])

    return [Candidate("quantized::embedding_byte", build)]


def _rows(integers: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """A quint8 tensor with float qparams per row, holding just these integers."""
    exact = (integers.float() - zero_point[:, None]) * scale[:, None]
    return torch.quantize_per_channel(exact, scale, zero_point, 0, torch.quint8)


def elementwise_pair(op: Any) -> Kernels:
    """``op(a, b, scale, zero_point)`` of two tensors."""

    def candidates(call: Int8Call) -> list[Candidate]:
        def build(emitter: Emitter, inputs: Sequence[fx.Node]) -> fx.Node:
            return emitter.call(op, *inputs, call.result.scale, call.result.zero_point)

        return [Candidate(op._schema.name, build)]

    return candidates


def fixed(op: Any) -> Kernels:
    """``op(x)`` whose output has qparams of its own."""

    def candidates(call: Int8Call) -> list[Candidate]:
        return [Candidate(op._schema.name, lambda emitter, inputs: emitter.call(op, inputs[0]))]

    return candidates


def elu(call: Int8Call) -> list[Candidate]:
    """``quantized::elu`` has its parameter behind the qparams."""

    def build(emitter: Emitter, inputs: Sequence[fx.Node]) -> fx.Node:
        args = (call.result.scale, call.result.zero_point, call.kwargs.get("alpha", 1.0))
        return clamped(emitter, call, emitter.call(Q.elu.default, inputs[0], *args))

    return [Candidate("quantized::elu", build)]


def silu(call: Int8Call) -> list[Candidate]:
    """``x * sigmoid(x)``. QNNPACK takes the sigmoid of an integer from a table of 256."""

    def build(emitter: Emitter, inputs: Sequence[fx.Node]) -> fx.Node:
        known = call.result
        result = emitter.call(torch.ops.fxquant.silu.default, inputs[0], known.scale, known.zero_point)
        return clamped(emitter, call, result)

    if QNNPACK not in torch.backends.quantized.supported_engines:
        return []
    return [Candidate("sigmoid (qnnpack) + quantized::mul", build)]


def no_kernels(call: Int8Call) -> list[Candidate]:
    """None of its own: :func:`in_fp32` is the way."""
    return []


def in_fp32(call: Int8Call) -> Candidate:
    """What every op has: dequantize, compute in fp32, quantize."""

    def build(emitter: Emitter, inputs: Sequence[fx.Node]) -> fx.Node:
        values = iter([emitter.dequantize(q) for q in inputs])
        weight = call.weight

        def replace_node(value: Any) -> Any:
            if not isinstance(value, fx.Node):
                return value
            if weight is not None and value.target is dequantize_channels:
                return emitter.constant(weight.dequantized(), "weight")
            if weight is not None and value is call.node.kwargs.get("bias"):
                return emitter.constant(weight.bias, "bias")
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
        return emitter.quantize(result, call.result)

    return Candidate("fp32 between dequantize and quantize", build)
