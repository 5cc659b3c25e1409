"""What every mix of int8 and fp32 costs in milliseconds on this machine."""

from __future__ import annotations

from torch import fx

from ..backends.base import Latencies
from .assign_precision import Assignment, tied
from .precision_cut import OUTSIDE, Crossing, PrecisionCosts


def measured_costs(assignment: Assignment, latencies: Latencies) -> PrecisionCosts:
    """The costs of the ops that ``assignment`` has in int8, by the names of their first nodes, and of their borders.

    The time of the ops that it has in fp32 is the same in every mix, and left out.
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
    # What is fused in int8 must not come apart: that would add a rounding.
    needs += [(first, second) for second, first in latencies.fused.items()]
    names = [u.root.name for u in units.values()]
    int8, fp32 = ({n: times.get(n, 0.0) for n in names} for times in (latencies.int8, latencies.fp32))
    return PrecisionCosts(int8, fp32, crossings, needs)
