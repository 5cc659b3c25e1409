"""Milliseconds of kernels from what they compute and move: the same in every compilation.

A kernel takes a time for each op that it calls, for each byte that it moves, and for each product of its layer
(``docs/decisions.md`` has the fit). It need not be exact: it decides which of two ways is faster by far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from ..kernels.calls import Arithmetic, Candidate, Int8Call
from ..runtime.cpu import has_vnni
from .cache import Times
from .trial import Work, work_of


@dataclass(frozen=True)
class LayerRates:
    """What the layers of one kind of arithmetic take: microseconds for any, nanoseconds per thousand products."""

    call: float
    dense: float
    depthwise: float


@dataclass(frozen=True)
class Rates:
    """What a CPU takes with two threads.

    Attributes:
        call, python: microseconds of an op of torch, and of one that is written in Python.
        fp32_bytes, int8_bytes: nanoseconds per kilobyte.
        layers: by arithmetic.
    """

    call: float
    python: float
    fp32_bytes: float
    int8_bytes: float
    layers: Mapping[Arithmetic, LayerRates]


VNNI = Rates(
    3.7, 100.0, 18.0, 118.0,
    {
        "fbgemm": LayerRates(18.0, 4.4, 12.0),
        "onednn": LayerRates(22.0, 2.0, 12.0),
        "fp32": LayerRates(15.0, 17.0, 78.0),
    },
)  # fmt: skip
_SLOWER: Mapping[Arithmetic, LayerRates] = {
    "fbgemm": LayerRates(18.0, 6.0, 15.0),
    "onednn": LayerRates(22.0, 6.0, 25.0),
}
AVX2 = replace(VNNI, layers={**VNNI.layers, **_SLOWER})
NOT_A_LAYER = LayerRates(0.0, 0.0, 0.0)


class CostModel:
    """Estimates the times of kernels. An estimate depends on the call and on the kind of CPU, on nothing else."""

    _known: ClassVar[dict[tuple[str, str], float]] = {}  # of this process

    def __init__(self) -> None:
        self._rates = VNNI if has_vnni() else AVX2

    def times(self, call: Int8Call, candidates: Sequence[Candidate]) -> Times:
        """Milliseconds of each candidate, by its name."""
        return {c.kernel: self._milliseconds(call, c) for c in candidates}

    def _milliseconds(self, call: Int8Call, candidate: Candidate) -> float:
        key = call.signature(), candidate.kernel
        if key not in self._known:
            self._known[key] = self._estimate(call, candidate, work_of(call, candidate))
        return self._known[key]

    def _estimate(self, call: Int8Call, candidate: Candidate, work: Work) -> float:
        rates = self._rates
        calls = sum(rates.python if _is_python(target) else rates.call for target in work.targets)
        moved = work.fp32_bytes * rates.fp32_bytes + work.int8_bytes * rates.int8_bytes
        layer = rates.layers.get(candidate.arithmetic, NOT_A_LAYER) if work.products else NOT_A_LAYER
        products = work.products * (layer.depthwise if call.is_depthwise else layer.dense)
        return (calls + layer.call) / 1e3 + (moved + products) / 1e9


def _is_python(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target.namespace == "fxquant"
