"""The choice of the fastest kernel for a call, by measuring."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..kernels.calls import Candidate, Int8Call
from ..kernels.fp32 import in_fp32
from .cache import Times, TimesCache, machine
from .race import EAGER, TORCHSCRIPT, race


class Tuner:
    """Measures candidates on the shapes of a call, and remembers the times.

    Times are kept by CPU, version of torch, number of threads, executor and signature of the call.

    Args:
        cache: False keeps nothing on disk.
        executor: the form in which the lowered graph will run: kernels are measured in that form.
    """

    def __init__(self, cache: bool = True, executor: str = "auto") -> None:
        self._cache = TimesCache(on_disk=cache)
        self._form = EAGER if executor == EAGER else TORCHSCRIPT

    def best(self, call: Int8Call, candidates: Sequence[Candidate]) -> Candidate:
        """The fastest of ``candidates`` whose result is right. A single candidate is not measured."""
        if len(candidates) == 1:
            return candidates[0]
        times = self.measure(call, candidates)
        best = min(candidates, key=lambda c: times[c.kernel])
        return best if math.isfinite(times[best.kernel]) else in_fp32(call)

    def measure(self, call: Int8Call, candidates: Sequence[Candidate]) -> Times:
        """Median milliseconds of each candidate, measured in turns. Infinite for a kernel whose result is wrong."""
        key = f"{machine()}|{torch.get_num_threads()}|{self._form}|{call.signature()}"
        known = self._cache.of(key)
        if any(c.kernel not in known for c in candidates):
            # All of them again: times of different moments do not compare.
            self._cache.add(key, race(call, candidates, self._form))
        return self._cache.of(key)

    def save(self) -> None:
        """Write the new times to disk."""
        self._cache.save()
