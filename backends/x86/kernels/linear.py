"""Linear layers and embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..codegen.emitter import Emitter
from ..runtime.engine import FBGEMM, ONEDNN
from .calls import Candidate, Int8Call, Kernels, clamped, engines_for

Q = torch.ops.quantized


def linear(call: Int8Call) -> list[Candidate]:
    """Linear with int8 input and output. If the output is fp32, the kernel takes fp32 and quantizes the input."""
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

        found.append(Candidate(f"quantized::linear ({engine})", build, arithmetic=engine))
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

    return [Candidate(f"quantized::{name} ({FBGEMM})", build, arithmetic=FBGEMM)]


def linear_activation(op: Any, *params: str) -> Kernels:
    """Linear with an activation that oneDNN fuses (leaky_relu, tanh)."""

    def candidates(call: Int8Call) -> list[Candidate]:
        if ONEDNN not in engines_for(call) or call.out is None:
            return []
        assert call.epilogue is not None
        extra = [call.epilogue[1].kwargs.get(p, 0.01) for p in params]

        def build(emitter: Emitter, inputs: Sequence[fx.Node]) -> fx.Node:
            packed = _packed_linear(emitter, call, ONEDNN)
            args = (inputs[0], packed, call.result.scale, call.result.zero_point, *extra)
            return clamped(emitter, call, emitter.call_onednn(op, *args))

        return [Candidate(f"{op._schema.name} ({ONEDNN})", build, arithmetic=ONEDNN)]

    return candidates


def _packed_linear(emitter: Emitter, call: Int8Call, engine: str) -> fx.Node:
    return emitter.constant(call.pack(engine, Q.linear_prepack.default), "linear")


def embedding(call: Int8Call) -> list[Candidate]:
    """Rows of uint8 with an fp32 scale each; the output is fp32."""

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
        indices = emitter.graph.call_method("contiguous", (inputs[0],))  # the kernel takes no others
        return emitter.call(Q.embedding_byte.default, packed, indices)

    return [Candidate("quantized::embedding_byte", build)]


def _rows(integers: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """A quint8 tensor of these integers, with float qparams per row."""
    exact = (integers.float() - zero_point[:, None]) * scale[:, None]
    return torch.quantize_per_channel(exact, scale, zero_point, 0, torch.quint8)
