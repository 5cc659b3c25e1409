"""Choosing among kernels by measuring them on the call's own shapes; results are kept on disk."""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor

from ...compiler.latency import interleaved_medians
from .calls import Candidate, Int8Call, Operand
from .emitter import Emitter
from .executors import Run, trace
from .kernels.fp32 import in_fp32

ROUNDS = 7
BUDGET = 0.04  # seconds a candidate
LEAST = 1e-4  # milliseconds: what takes less cannot be told from a call that does nothing
EAGER, TORCHSCRIPT = "eager", "torchscript"


class Tuner:
    """Measured milliseconds of candidates, cached by CPU, torch, threads and the call's signature.

    ``executor`` is the form in which the lowered graph will run: kernels are measured in that form.
    The file is ``$FXQUANT_CACHE/kernels.json`` (default ``~/.cache/fxquant``); an unreadable one is measured anew.
    """

    def __init__(self, cache: bool = True, executor: str = "auto") -> None:
        self._path = cache_folder() / "kernels.json" if cache else None
        self._times: dict[str, dict[str, float]] = _read(self._path)
        self._dirty = False
        self._form = EAGER if executor == EAGER else TORCHSCRIPT

    def best(self, call: Int8Call, candidates: Sequence[Candidate]) -> Candidate:
        """The fastest of ``candidates`` that computes ``call`` rightly; the only one is not measured."""
        if len(candidates) == 1:
            return candidates[0]
        times = self.measure(call, candidates)
        best = min(candidates, key=lambda c: times[c.kernel])
        return best if math.isfinite(times[best.kernel]) else in_fp32(call)

    def measure(self, call: Int8Call, candidates: Sequence[Candidate]) -> dict[str, float]:
        """Median milliseconds of each candidate, measured in turns so that noise hits all alike.

        Infinite for a kernel whose result is wrong.
        """
        key = f"{machine()}|{torch.get_num_threads()}|{self._form}|{call.signature()}"
        known = self._times.setdefault(key, {})
        missing = [c for c in candidates if c.kernel not in known]
        if missing:
            # All of them again: times of different moments do not compare.
            known.update(_race(call, candidates, self._form))
            self._dirty = True
        return known

    def save(self) -> None:
        """Write the cache file, whole or not at all."""
        if self._path is None or not self._dirty:
            return
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            merged = _read(self._path) | self._times
            draft = self._path.with_suffix(f".{os.getpid()}.{threading.get_ident()}.tmp")
            draft.write_text(json.dumps(merged))
            draft.replace(self._path)
        self._dirty = False


def cache_folder() -> Path:
    """Where measurements are kept."""
    return Path(os.environ.get("FXQUANT_CACHE") or Path.home() / ".cache" / "fxquant")


def _read(path: Path | None) -> dict[str, dict[str, float]]:
    try:
        data = json.loads(path.read_text()) if path else {}
    except (OSError, ValueError):
        return {}
    if not isinstance(data, dict):
        return {}
    return {k: v for k, v in data.items() if isinstance(v, dict) and all(isinstance(t, float) for t in v.values())}


@lru_cache
def machine() -> str:
    """The CPU and the version of torch, by which measurements are kept."""
    names = [""]
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")][:1]
    return f"{''.join(names)}|{torch.backends.cpu.get_cpu_capability()}|torch {torch.__version__}"


def example(operand: Operand) -> Tensor:
    """A random tensor like ``operand``, images in channels_last; integers small enough never to saturate."""
    seeded = torch.Generator().manual_seed(0)  # the user's random numbers must not depend on what is cached
    x = torch.randint(0, 128, operand.shape, dtype=torch.uint8, generator=seeded)
    if x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    if operand.qparams is None:
        return x.float() / 64 - 1
    return torch._make_per_tensor_quantized_tensor(x, operand.qparams.scale, operand.qparams.zero_point)


def _graph(call: Int8Call, candidate: Candidate) -> Emitter:
    """``candidate`` alone."""
    emitter = Emitter()
    nodes = [emitter.graph.placeholder(f"x{i}") for i in range(len(candidate.inputs or call.inputs))]
    emitter.graph.output(candidate.build(emitter, nodes))
    return emitter


def _runs(emitters: Sequence[Emitter], inputs: Sequence[Sequence[Tensor]], form: str) -> tuple[Run, list[Run]]:
    """A call that does nothing, and each graph as a function, all in one form: eager where one has no other."""
    if form != EAGER:
        with contextlib.suppress(Exception):  # TorchScript raises anything; and a future torch may have none
            return _empty_trace(), [trace(*pair) for pair in zip(emitters, inputs, strict=True)]
    return (lambda x: x), [emitter.straight_line() for emitter in emitters]


@lru_cache
def _empty_trace() -> Run:
    emitter = Emitter()
    emitter.graph.output(emitter.graph.placeholder("x"))
    return trace(emitter, [torch.zeros(1)])


def _race(call: Int8Call, candidates: Sequence[Candidate], form: str) -> dict[str, float]:
    tensors = [example(o) for o in call.inputs]
    inputs = [tensors if c.inputs is None else [example(o) for o in c.inputs] for c in candidates]
    empty, runs = _runs([_graph(call, c) for c in candidates], inputs, form)
    bound = [partial(empty, tensors[0]), *(partial(run, *given) for run, given in zip(runs, inputs, strict=True))]
    with torch.inference_mode():
        calling, *medians = interleaved_medians(bound, ROUNDS, BUDGET * len(runs), warm_up=1)
        times = {c.kernel: max(ms - calling, LEAST) for c, ms in zip(candidates, medians, strict=True)}
        # With an fp32 input some candidates round it and others do not: nothing to compare.
        rounded = call.out is not None and all(o.qparams is not None for o in call.inputs)
        if call.weight is not None and call.epilogue is None and rounded:
            expected = _graph(call, in_fp32(call)).straight_line()(*tensors).int_repr().int()
            for candidate, run in zip(candidates, runs, strict=True):
                if candidate.inputs is None and (run(*tensors).int_repr().int() - expected).abs().max() > 1:
                    times[candidate.kernel] = math.inf
    return times
