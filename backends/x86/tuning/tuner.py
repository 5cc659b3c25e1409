"""The choice of the kernel for a call: right first, then fast."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from ....compiler.core.memory import release_after
from ..kernels.calls import Candidate, Int8Call
from ..kernels.fp32 import in_fp32
from .cache import Times, TimesCache, machine
from .cost_model import CostModel
from .race import EAGER, TORCHSCRIPT, race
from .trial import is_right

Costs = Callable[[Int8Call, Sequence[Candidate]], Times]  # milliseconds by the name of a kernel; infinite: wrong


class Tuner:
    """Finds the kernel for each call.

    Measured times are kept by CPU, version of torch, number of threads, executor and signature of the call.

    Args:
        cache: False keeps nothing on disk.
        executor: the form in which the lowered graph will run: kernels are measured in that form.
    """

    def __init__(self, cache: bool = True, executor: str = "auto") -> None:
        self._cache = TimesCache(on_disk=cache)
        self._form = EAGER if executor == EAGER else TORCHSCRIPT
        self._model = CostModel()
        self._right: dict[object, bool] = {}

    def costs(self, deterministic: bool) -> Costs:
        """What decides between kernels that give different integers: a cost model, or measured times."""
        return self.estimate if deterministic else self.measure

    def best(self, call: Int8Call, candidates: Sequence[Candidate], deterministic: bool) -> Candidate:
        """The fastest of ``candidates`` whose result is right.

        Args:
            deterministic: measured times choose only between kernels that give the same integers.
        """
        right = [c for c in candidates if self._is_right(call, c)] or [in_fp32(call)]
        if deterministic and len({c.arithmetic for c in right}) > 1:
            estimates = self._model.times(call, right)
            arithmetic = min(right, key=lambda c: estimates[c.kernel]).arithmetic
            right = [c for c in right if c.arithmetic == arithmetic]
        if len(right) == 1:
            return right[0]
        times = self._measured(call, right)
        return min(right, key=lambda c: times[c.kernel])

    def estimate(self, call: Int8Call, candidates: Sequence[Candidate]) -> Times:
        """Milliseconds of each candidate by the cost model. Infinite for a kernel whose result is wrong."""
        return self._only_right(call, candidates, self._model.times(call, candidates))

    def measure(self, call: Int8Call, candidates: Sequence[Candidate]) -> Times:
        """Median milliseconds of each candidate, measured in turns. Infinite for a kernel whose result is wrong."""
        return self._only_right(call, candidates, self._measured(call, candidates))

    def _measured(self, call: Int8Call, candidates: Sequence[Candidate]) -> Times:
        key = f"{machine()}|{torch.get_num_threads()}|{self._form}|{call.signature()}"
        known = self._cache.of(key)
        if any(c.kernel not in known for c in candidates):
            # All of them again: times of different moments do not compare.
            times, calm = race(call, candidates, self._form)
            known = self._cache.add(key, times, keep=calm)
        return {c.kernel: known[c.kernel] for c in candidates}

    def _only_right(self, call: Int8Call, candidates: Sequence[Candidate], times: Times) -> Times:
        return {c.kernel: times[c.kernel] if self._is_right(call, c) else math.inf for c in candidates}

    def _is_right(self, call: Int8Call, candidate: Candidate) -> bool:
        """Only layers are checked: of other ops, and with a rounding left out, results may differ by more."""
        rounded = call.out is not None and all(o.qparams is not None for o in call.inputs)
        if call.weight is None or call.epilogue or not rounded or candidate.inputs or candidate.precision == "fp32":
            return True
        shared = replace(call, op="").signature()  # one check serves all questions about a layer
        key = candidate.kernel, shared, call.weight.fingerprint(), call.inputs, call.out
        if key not in self._right:
            self._right[key] = is_right(call, candidate)
            release_after([call.weight.integers])
        return self._right[key]

    def save(self) -> None:
        """Write the new times to disk."""
        self._cache.save()
