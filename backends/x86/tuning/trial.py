"""A kernel run once on integers of its call: whether its result is right, and how much it computes and moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ....compiler.core.tensors import tensor_bytes, tensors_of
from ....compiler.execution.visitor import Visitor
from ..codegen.emitter import Emitter
from ..kernels.calls import Candidate, Int8Call, Operand
from ..kernels.fp32 import in_fp32
from ..runtime.cpu import has_vnni
from ..runtime.engine import ONEDNN, run_under

# Without VNNI, weights leave room for the integers that calibration saw, which may be small.
LARGEST = 255 if has_vnni() else 127


@dataclass(frozen=True)
class Work:
    """What a kernel does.

    Attributes:
        targets: the ops that it calls.
        bytes: that they read and write, in fp32 and in integers.
        products: multiplications of its layer.
    """

    targets: tuple[Any, ...]
    fp32_bytes: int
    int8_bytes: int
    products: int


def example(operand: Operand, zeros: bool = False) -> Tensor:
    """A random tensor like ``operand``, or one of zeros, which takes less time; images in channels_last."""
    seeded = torch.Generator().manual_seed(0)  # the user's random numbers must not depend on what is tried
    x = torch.zeros(operand.shape, dtype=torch.uint8)
    if not zeros:
        x.random_(0, LARGEST + 1, generator=seeded)
    if x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    if operand.qparams is None:
        return x.float() / 64 - 1
    return torch._make_per_tensor_quantized_tensor(x, operand.qparams.scale, operand.qparams.zero_point)


def graph_of(call: Int8Call, candidate: Candidate) -> Emitter:
    """A graph of ``candidate`` alone."""
    emitter = Emitter()
    nodes = [emitter.graph.placeholder(f"x{i}") for i in range(len(candidate.inputs or call.inputs))]
    emitter.graph.output(candidate.build(emitter, nodes))
    return emitter


def work_of(call: Int8Call, candidate: Candidate) -> Work:
    """What ``candidate`` does on the shapes of the call."""
    targets: list[Any] = []
    moved = {True: 0, False: 0}  # bytes by: is fp32
    values: dict[fx.Node, list[Tensor]] = {}

    def see(node: fx.Node, value: Any) -> Any:
        values[node] = tensors_of(value)
        if node.op.startswith("call"):
            targets.append(node.target)
            for tensor in (*values[node], *(t for n in node.all_input_nodes for t in values[n])):
                moved[tensor.is_floating_point()] += tensor_bytes(tensor)
        return value

    inputs = [example(o, zeros=True) for o in candidate.inputs or call.inputs]
    result = _run(graph_of(call, candidate), inputs, see)
    return Work(tuple(targets), moved[True], moved[False], _products(call, inputs[0], result))


def _products(call: Int8Call, given: Tensor, result: Tensor) -> int:
    if call.weight is None or not isinstance(result, Tensor):
        return 0
    weight, axis = call.weight.integers, call.weight.axis
    return (given if axis == 1 else result).numel() * weight.numel() // weight.shape[0]


def is_right(call: Int8Call, candidate: Candidate) -> bool:
    """Whether a layer's kernel differs by at most one step from fp32, on two or three small images of random integers.

    Some kernels of torch 2.13 are right for one item only, or return what was in memory before. So it runs twice, with
    other contents of the memory that it may be given.
    """
    assert call.weight is not None
    window = call.weight.integers.shape[2:]
    inputs = [example(replace(o, shape=_small(o.shape, window, call))) for o in call.inputs]
    expected = _integers(_run(graph_of(call, in_fp32(call)), inputs))
    graph = graph_of(call, candidate)
    for poison in (0, 255):
        torch.full_like(expected, poison, dtype=torch.uint8)  # freed at once
        given = _integers(_run(graph, inputs))
        if given.shape != expected.shape or (given - expected).abs().max() > 1:
            return False
    return True


def _small(shape: tuple[int, ...], window: Sequence[int], call: Int8Call) -> tuple[int, ...]:
    """The shape of an image, or of rows, to check a layer with: more than one item, and room for a few windows."""
    if len(shape) != len(window) + 2:  # no batch, or rows of a linear layer
        return shape if window else (*(min(n, 16) for n in shape[:-1]), shape[-1])
    dilation = call.option("dilation", 1, len(window))
    room = [max(16, 2 * d * k) for d, k in zip(dilation, window, strict=True)]
    return (3 if shape[0] == 1 else 2, shape[1], *(min(n, r) for n, r in zip(shape[2:], room, strict=True)))


def _integers(q: Tensor) -> Tensor:
    return q.int_repr().int()


def _run(emitter: Emitter, inputs: Sequence[Tensor], see: Any = None) -> Any:
    visitor = Visitor(nn.Module(), see, attributes=emitter.resolve(), graph=emitter.graph)
    with torch.no_grad():
        return run_under(ONEDNN, visitor.run, *inputs)
