"""A ReLU after a layer that will be replaced becomes part of that layer."""

from __future__ import annotations

import math

from torch import fx

from ...backends.ops.units import clamp_bounds, match_units
from ...compiler.core.overrides import module_path
from ..base import PassResult, finish
from ..layers.sharing import Sharing
from .plan import LayerPlan


class AbsorbRelus:
    """Not exact until the layers are replaced.

    Args:
        plan: says which layers will be replaced; those that include their ReLU are added to it.
    """

    name = "absorb_relus"
    exact = False

    def __init__(self, plan: LayerPlan) -> None:
        self.plan = plan

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        sharing, count = Sharing(gm), 0
        for unit in match_units(gm).units:
            path = str(unit.root.target)
            if path not in self.plan.requests or not unit.row.weighted or len(unit.nodes) != 2:
                continue
            is_relu = clamp_bounds(unit) == (0.0, math.inf)
            alone = sharing.reason(gm.get_submodule(path), path) is None
            left = module_path(unit.output) in self.plan.reasons  # an override speaks of the ReLU
            if is_relu and alone and not left:
                unit.output.replace_all_uses_with(unit.root)
                gm.graph.erase_node(unit.output)
                self.plan.relus |= {path}
                count += 1
        finish(gm)
        return PassResult(count)
