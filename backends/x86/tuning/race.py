"""Kernels timed against each other on the shapes of a call."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from functools import lru_cache, partial

import torch
from torch import Tensor

from ....compiler.execution.timing import interleaved_medians
from ..codegen.emitter import Emitter
from ..codegen.executors import trace
from ..kernels.calls import Candidate, Int8Call, Operand
from ..kernels.fp32 import in_fp32
from ..runtime.script import Run

EAGER, TORCHSCRIPT = "eager", "torchscript"
ROUNDS = 7
BUDGET = 0.04  # seconds per candidate
LEAST = 1e-4  # milliseconds: a shorter time cannot be told from that of an empty call


def example(operand: Operand) -> Tensor:
    """A random tensor like ``operand``, images in channels_last. The integers are small, so that nothing saturates."""
    seeded = torch.Generator().manual_seed(0)  # the user's random numbers must not depend on the cache
    x = torch.randint(0, 128, operand.shape, dtype=torch.uint8, generator=seeded)
    if x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    if operand.qparams is None:
        return x.float() / 64 - 1
    return torch._make_per_tensor_quantized_tensor(x, operand.qparams.scale, operand.qparams.zero_point)


def _graph(call: Int8Call, candidate: Candidate) -> Emitter:
    """A graph of ``candidate`` alone."""
    emitter = Emitter()
    nodes = [emitter.graph.placeholder(f"x{i}") for i in range(len(candidate.inputs or call.inputs))]
    emitter.graph.output(candidate.build(emitter, nodes))
    return emitter


def _runs(emitters: Sequence[Emitter], inputs: Sequence[Sequence[Tensor]], form: str) -> tuple[Run, list[Run]]:
    """An empty call, and each graph as a function, all in the same form: eager if TorchScript does not take one."""
    if form != EAGER:
        with contextlib.suppress(Exception):  # TorchScript raises anything; and a future torch may have none
            return _empty_trace(), [trace(*pair) for pair in zip(emitters, inputs, strict=True)]
    return (lambda x: x), [emitter.straight_line() for emitter in emitters]


@lru_cache
def _empty_trace() -> Run:
    emitter = Emitter()
    emitter.graph.output(emitter.graph.placeholder("x"))
    return trace(emitter, [torch.zeros(1)])


def race(call: Int8Call, candidates: Sequence[Candidate], form: str) -> dict[str, float]:
    """Median ms of each candidate in ``form``, less those of an empty call; infinite if its result is wrong."""
    tensors = [example(o) for o in call.inputs]
    inputs = [tensors if c.inputs is None else [example(o) for o in c.inputs] for c in candidates]
    empty, runs = _runs([_graph(call, c) for c in candidates], inputs, form)
    bound = [partial(empty, tensors[0]), *(partial(run, *given) for run, given in zip(runs, inputs, strict=True))]
    with torch.inference_mode():
        calling, *medians = interleaved_medians(bound, ROUNDS, BUDGET * len(runs), warm_up=1)
        times = {c.kernel: max(ms - calling, LEAST) for c, ms in zip(candidates, medians, strict=True)}
        # With an fp32 input some candidates round it and others do not: their results differ.
        rounded = call.out is not None and all(o.qparams is not None for o in call.inputs)
        if call.weight is not None and call.epilogue is None and rounded:
            expected = _graph(call, in_fp32(call)).straight_line()(*tensors).int_repr().int()
            for candidate, run in zip(candidates, runs, strict=True):
                if candidate.inputs is None and (run(*tensors).int_repr().int() - expected).abs().max() > 1:
                    times[candidate.kernel] = math.inf
    return times
