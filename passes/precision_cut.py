r"""The choice of int8 or fp32 for every op as a minimum cut, and the Pareto front of such choices.

A choice :math:`S` (the ops in int8) costs what its ops cost in their precision and what converting values between
them costs. A value is converted once, however many ops read it. Int8 is the source and fp32 the sink of a network
whose cuts are the choices and whose capacities are these costs, so that the least cut is the best choice
(Picard and Ratliff 1975, "Minimum cuts and related problems").

With a penalty :math:`p_i` for each op in int8, the choices of least :math:`t(S) + \lambda p(S)` over all
:math:`\lambda \ge 0` are the corners of the lower convex hull of time against penalty. They are found without trying
values of :math:`\lambda`: between two known corners the slope of the line through them either gives a new one, or
proves that there is none (Aneja and Nair 1979, doi:10.1287/mnsc.25.1.73).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx

Key = Any  # an op, hashable

OUTSIDE = None  # in place of an op: whatever stays in fp32 anyway
_INT8, _FP32 = "int8", "fp32"  # source and sink of the cut
_UNIT = 2**40  # capacities are integers, so that the cut is exact


@dataclass(frozen=True)
class Crossing:
    """A value that is converted where its maker and a reader differ. Ops are keys, or :data:`OUTSIDE`.

    ``quantize`` and ``dequantize`` are what it costs to convert it.
    """

    maker: Key
    readers: frozenset[Key]
    quantize: float
    dequantize: float


@dataclass(frozen=True)
class Point:
    """A choice: the ops in int8, what it costs, and the sum of their penalties."""

    int8: frozenset[Key]
    cost: float
    penalty: float


@dataclass(frozen=True)
class PrecisionCosts:
    """What a choice costs.

    Attributes:
        int8, fp32: of each op in that precision; infinite where it must not have it.
        crossings: the values between ops.
        needs: pairs of ops of which the first is int8 only if the second is, as it passes integers through.
    """

    int8: Mapping[Key, float]
    fp32: Mapping[Key, float]
    crossings: Sequence[Crossing] = ()
    needs: Sequence[tuple[Key, Key]] = ()

    def total(self, int8: Collection[Key]) -> float:
        """What it costs to have the ops ``int8`` in int8 and all others in fp32; infinite where that cannot be."""
        if any(a in int8 and b not in int8 for a, b in self.needs):
            return math.inf
        total = sum(self.int8[op] if op in int8 else self.fp32[op] for op in self.fp32)
        for value in self.crossings:
            quantized = sum(op in int8 for op in value.readers)
            if value.maker in int8:
                total += value.dequantize if quantized < len(value.readers) else 0.0
            else:
                total += value.quantize if quantized else 0.0
        return total

    def point(self, int8: frozenset[Key], penalties: Mapping[Key, float]) -> Point:
        """The choice ``int8`` with what it costs."""
        return Point(int8, self.total(int8), math.fsum(penalties.get(op, 0.0) for op in int8))

    def cheapest(
        self,
        penalties: Mapping[Key, float] | None = None,
        weight: float = 0.0,
        fixed: Mapping[Key, bool] | None = None,
    ) -> frozenset[Key]:
        """The ops in int8 in the choice of least cost.

        Args:
            penalties: cost ``weight`` times as much in addition, where the op is int8.
            fixed: ops that must be int8 (True) or fp32 (False).
        """
        network: nx.DiGraph[Any] = nx.DiGraph()
        network.add_nodes_from((_INT8, _FP32))
        for op in self.fp32:
            extra = weight * (penalties or {}).get(op, 0.0)
            known = (fixed or {}).get(op)
            _limit(network, _INT8, (op,), math.inf if known is True else self.fp32[op])
            _limit(network, (op,), _FP32, math.inf if known is False else self.int8[op] + extra)
        for number, value in enumerate(self.crossings):
            given, taken = ("given", number), ("taken", number)
            _limit(network, _end(value.maker), given, value.dequantize)
            _limit(network, taken, _end(value.maker), value.quantize)
            for op in value.readers:
                network.add_edge(given, _end(op))
                network.add_edge(_end(op), taken)
        for a, b in self.needs:
            network.add_edge(_end(a), _end(b))
            network.edges[_end(a), _end(b)].pop("capacity", None)
        _, (int8, _) = nx.minimum_cut(network, _INT8, _FP32)
        return frozenset(op for op in self.fp32 if (op,) in int8)

    def front(self, penalties: Mapping[Key, float]) -> list[Point]:
        """The corners of the convex hull of cost against penalty: the cheapest first, that without penalties last."""

        def between(a: Point, b: Point) -> list[Point]:
            slope = (b.cost - a.cost) / (a.penalty - b.penalty)
            new = self.point(self.cheapest(penalties, slope), penalties)
            gain = (a.cost + slope * a.penalty) - (new.cost + slope * new.penalty)
            if not gain > 1e-9 * abs(b.cost) or not a.penalty > new.penalty > b.penalty:
                return []
            return [*between(a, new), new, *between(new, b)]

        exact = self.point(self.cheapest(fixed={op: False for op, p in penalties.items() if p > 0}), penalties)
        cheapest = self.point(self.cheapest(), penalties)
        if not (cheapest.cost < exact.cost and cheapest.penalty > exact.penalty):
            return [exact]
        found = [cheapest, *between(cheapest, exact), exact]
        return [p for p in found if not any(q.cost <= p.cost and q.penalty < p.penalty for q in found)]


def _end(op: Key) -> Any:
    """The node of the network that stands for ``op``."""
    return _FP32 if op is OUTSIDE else (op,)


def _limit(network: nx.DiGraph[Any], a: Any, b: Any, cost: float) -> None:
    network.add_edge(a, b, **({} if math.isinf(cost) else {"capacity": round(cost * _UNIT)}))
