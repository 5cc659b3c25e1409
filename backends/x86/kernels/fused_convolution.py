"""Convolutions with an op fused after them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from ..codegen.emitter import Emitter
from ..runtime import torch_ops  # noqa: F401  (defines torch.ops.fxquant)
from ..runtime.engine import ONEDNN
from .calls import Candidate, Int8Call, Kernels, clamped, engines_for
from .convolution import Q


def conv2d_add(call: Int8Call) -> list[Candidate]:
    """Convolution plus a residual, which is overwritten. The inputs are the image and the residual."""

    def build(emitter: Emitter, inputs: Sequence[fx.Node]) -> fx.Node:
        lists = [call.option(n, d, 2) for n, d in (("stride", 1), ("padding", 0), ("dilation", 1))]
        groups = int(call.kwargs.get("groups", 1))
        packed = call.pack(ONEDNN, lambda w, b: Q.conv2d_prepack(w, b, *lists, groups))
        relu = call.clamp is not None and call.clamp[0] == 0
        op = Q.conv2d_add_relu.default if relu else Q.conv2d_add.default
        args = (emitter.constant(packed, "conv2d"), call.result.scale, call.result.zero_point)
        return clamped(emitter, call, emitter.call_onednn(op, inputs[0], inputs[1], *args))

    usable = ONEDNN in engines_for(call)
    return [Candidate("quantized::conv2d_add (onednn)", build, arithmetic=ONEDNN)] if usable else []


def conv2d_activation(attribute: str) -> Kernels:
    """Convolution with the activation as a post-op of oneDNN: nothing is rounded between them."""

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
                emitter.constant(call.bias, "bias") if call.bias is not None else None,
                *lists, groups, out.scale, out.zero_point, attribute,
            )  # fmt: skip
            return clamped(emitter, call, result)

        return [Candidate(f"onednn::qconv2d_pointwise ({attribute})", build, arithmetic=ONEDNN)]

    return candidates
