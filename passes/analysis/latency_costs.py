"""The costs of every int8/fp32 mix in milliseconds on this machine."""

from __future__ import annotations

from torch import fx

from ...backends.base.backend import Latencies
from .assignment import Assignment, tied
from .precision_cut import OUTSIDE, Crossing, PrecisionCosts


def latency_costs(assignment: Assignment, latencies: Latencies) -> PrecisionCosts:
    """The costs of the int8 ops of ``assignment``, by the names of their roots, and of the conversions between them.

    The times of its fp32 ops are the same in every mix, and left out.
    """
    units = {u.root: u for u in assignment.int8_units}

    def name(root: fx.Node | None) -> str | None:
        return root.name if root is not None and root in units else OUTSIDE

    crossings = []
    for passed in assignment.passed:
        maker, readers = name(passed.maker), frozenset(map(name, passed.readers))
        value = passed.value.name
        back = 0.0 if passed.free else latencies.dequantize.get(value, 0.0)
        crossings.append(Crossing(maker, readers, latencies.quantize.get(value, 0.0), back))
    needs = [(name(a), name(b)) for a, b in tied(units, assignment.passed)]
    # A fused op stays int8 with the op before it: to separate them would add a rounding.
    needs += [(first, second) for second, first in latencies.fused.items()]
    names = [u.root.name for u in units.values()]
    int8, fp32 = ({n: times.get(n, 0.0) for n in names} for times in (latencies.int8, latencies.fp32))
    return PrecisionCosts(int8, fp32, crossings, needs)
