r"""The choice of int8 or fp32 for every op as a minimum cut, and the Pareto front of such choices.

The cost of a choice :math:`S` (the ops in int8) is that of its ops in their precision, plus that of converting values
between int8 and fp32. A value is converted once, however many ops read it. In a network with int8 as the source, fp32
as the sink and these costs as capacities, each cut is a choice, and the minimum cut is the best one (Picard and Ratliff
1975, "Minimum cuts and related problems").

With a penalty :math:`p_i` for each op in int8, the choices of least :math:`t(S) + \lambda p(S)` for all
:math:`\lambda \ge 0` are the corners of the lower convex hull of time against penalty. They are found without a sweep
over :math:`\lambda`: the slope of the line through two known corners gives a new corner between them, or proves that
there is none (Aneja and Nair 1979, doi:10.1287/mnsc.25.1.73).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx

Key = Any  # an op, hashable
OUTSIDE = None  # stands for all ops that are fp32 in every choice
_INT8, _FP32 = "int8", "fp32"  # source and sink of the network
_UNIT = 2**40  # capacities are integers, so that the cut is exact


@dataclass(frozen=True)
class Crossing:
    """A value that is converted if its maker and a reader differ in precision.

    Attributes:
        maker, readers: keys of ops, or :data:`OUTSIDE`.
        quantize, dequantize: the cost of each conversion.
    """

    maker: Key
    readers: frozenset[Key]
    quantize: float
    dequantize: float


@dataclass(frozen=True)
class Point:
    """A choice: the ops in int8, its cost, and the sum of their penalties."""

    int8: frozenset[Key]
    cost: float
    penalty: float


@dataclass(frozen=True)
class PrecisionCosts:
    """The costs of all choices.

    Attributes:
        int8, fp32: the cost of each op in that precision; infinite if it must not have it.
        crossings: the values between ops.
        needs: pairs of ops of which the first is int8 only if the second is.
    """

    int8: Mapping[Key, float]
    fp32: Mapping[Key, float]
    crossings: Sequence[Crossing] = ()
    needs: Sequence[tuple[Key, Key]] = ()

    def total(self, int8: Collection[Key]) -> float:
        """The cost of having the ops ``int8`` in int8 and all others in fp32; infinite if that is impossible."""
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
        """The choice ``int8`` with its cost and penalty."""
        return Point(int8, self.total(int8), math.fsum(penalties.get(op, 0.0) for op in int8))

    def cheapest(
        self,
        penalties: Mapping[Key, float] | None = None,
        weight: float = 0.0,
        fixed: Mapping[Key, bool] | None = None,
    ) -> frozenset[Key]:
        """The ops that are int8 in the choice of least cost.

        Args:
            penalties: ``weight`` times the penalty is added to the cost of an op in int8.
            weight: of the penalties.
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
        """The corners of the convex hull of cost against penalty, from the cheapest to the one without penalties."""

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
    """The node of the network for ``op``."""
    return _FP32 if op is OUTSIDE else (op,)


def _limit(network: nx.DiGraph[Any], a: Any, b: Any, cost: float) -> None:
    network.add_edge(a, b, **({} if math.isinf(cost) else {"capacity": round(cost * _UNIT)}))
