"""Convolutions, plain and transposed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from ..codegen.emitter import Emitter
from ..runtime.engine import ONEDNN, Engine
from .calls import Candidate, Int8Call, Kernels, clamped, engines_for, qint8
from .fp32 import in_fp32

Q = torch.ops.quantized


def conv(dims: int, transposed: bool = False) -> Kernels:
    """Convolution over ``dims`` axes of space."""
    name = f"conv_transpose{dims}d" if transposed else f"conv{dims}d"
    packet = getattr(Q, name)
    # The default overload of conv2d and conv3d is an old one, which takes the options again.
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

            found.append(Candidate(f"quantized::{name} ({engine})", build, arithmetic=engine))
        return found

    return candidates


def conv_transpose(dims: int) -> Kernels:
    """Transposed convolution.

    The kernels of both engines are wrong for some shapes (torch 2.13: fbgemm for a window of 2, oneDNN if the numbers
    of channels differ); the tuner finds out. So there are two more candidates: fp32, and, if windows do not overlap, a
    pointwise convolution to all pixels of the window and a pixel shuffle.
    """
    direct = conv(dims, transposed=True)

    def candidates(call: Int8Call) -> list[Candidate]:
        found = [*direct(call), in_fp32(call)]
        assert call.weight is not None
        window = list(call.weight.integers.shape[2:])
        disjoint = window == call.option("stride", 1, dims) and len(set(window)) == 1 and window[0] > 1
        plain = not any(call.option("padding", 0, dims) + call.option("output_padding", 0, dims))
        if dims == 2 and disjoint and plain and set(call.option("dilation", 1, dims)) == {1}:
            found += [_shuffled(call, engine, window[0]) for engine in engines_for(call)]
        return found

    return candidates


def _shuffled(call: Int8Call, engine: Engine, factor: int) -> Candidate:
    def pack(_: Tensor, bias: Tensor | None) -> Any:
        weight = call.weight
        assert weight is not None
        pointwise = weight.integers.permute(1, 2, 3, 0).flatten(0, 2)[:, :, None, None].contiguous()
        wide = None if bias is None else bias.repeat_interleave(factor**2)
        whole = qint8(replace(weight, integers=pointwise, axis=0))
        return Q.conv2d_prepack(whole, wide, [1, 1], [0, 0], [1, 1], 1)

    def build(emitter: Emitter, inputs: Sequence[fx.Node]) -> fx.Node:
        packed = emitter.constant(call.pack(engine, pack, f"shuffled {engine}"), "conv2d")
        pixels = emitter.call(Q.conv2d.new, inputs[0], packed, call.result.scale, call.result.zero_point)
        shuffled = emitter.call(torch.ops.aten.pixel_shuffle.default, pixels, factor)
        return clamped(emitter, call, emitter.image(shuffled))

    return Candidate(f"quantized::conv2d + pixel_shuffle ({engine})", build, arithmetic=engine)
