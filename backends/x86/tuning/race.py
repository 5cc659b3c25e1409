"""Kernels timed against each other on the shapes of a call."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import lru_cache, partial

import torch
from torch import Tensor

from ....compiler.core.locks import process_lock
from ....compiler.execution.timing import Timing, interleaved_times
from ..codegen.emitter import Emitter
from ..codegen.executors import trace
from ..kernels.calls import Candidate, Int8Call
from ..runtime.script import Run
from .cache import Times
from .trial import example, graph_of

EAGER, TORCHSCRIPT = "eager", "torchscript"
ROUNDS = 7
BUDGET = 0.04  # seconds per candidate
LEAST = 1e-4  # milliseconds: a shorter time cannot be told from that of an empty call
AGAIN = 3  # how often a disturbed race is run at most

_racing = process_lock()  # two races at once would disturb each other


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


def race(call: Int8Call, candidates: Sequence[Candidate], form: str) -> tuple[Times, bool]:
    """Median ms of each candidate in ``form``, less those of an empty call; and whether nothing disturbed them.

    A disturbed race is run again. If all were disturbed, the times are those of the least disturbed one.
    """
    tensors = [example(o) for o in call.inputs]
    inputs = [tensors if c.inputs is None else [example(o) for o in c.inputs] for c in candidates]
    empty, runs = _runs([graph_of(call, c) for c in candidates], inputs, form)
    bound = [partial(empty, tensors[0]), *(partial(run, *given) for run, given in zip(runs, inputs, strict=True))]
    tried: list[Timing] = []
    with torch.inference_mode(), _racing:
        while len(tried) < AGAIN and not (tried and tried[-1].calm):
            tried.append(interleaved_times(bound, ROUNDS, BUDGET * len(runs), warm_up=1))
    best = min(tried, key=lambda timing: (not timing.calm, timing.spread))
    calling, *medians = best.medians
    return {c.kernel: max(ms - calling, LEAST) for c, ms in zip(candidates, medians, strict=True)}, best.calm
