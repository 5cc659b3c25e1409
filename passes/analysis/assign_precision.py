"""Decide for every op whether it runs in int8 or fp32, and why."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import networkx as nx
from torch import fx

from ...backends.base.backend import Backend, binding_of
from ...backends.base.op import Call, Output
from ...backends.ops.stubs import dequant_stub, quant_stub
from ...backends.ops.units import Unit, match_units
from ...compiler.core.overrides import ResolvedConfig
from ...compiler.execution.graphs import called_module
from ...compiler.execution.shapes import ValueInfo
from ...compiler.execution.user_code import is_hooked
from ..layers.sharing import HOOKED
from .assignment import BORDERS_COST_MORE, INPUT_IS_FP32, Assignment, PassedValue, reads_size, tied
from .precision_cut import OUTSIDE, Crossing, PrecisionCosts

OUTSIDE_STUBS = "outside the region of the model's QuantStub and DeQuantStub"
NO_GAIN = "an int8 region without a convolution or linear layer does not pay for its conversions"
DYNAMIC_HINT = "; the overrides 'dynamic' and 'fp16' are for its weights"

_BORDER, _PREFER_INT8 = 10**6, 1  # costs: borders count first, then int8 units


def assign_precision(
    gm: fx.GraphModule,
    backend: Backend,
    config: ResolvedConfig,
    values: Mapping[fx.Node, ValueInfo],
    refused: Mapping[str, str] | None = None,
) -> Assignment:
    """Put the units into int8 that can and should be; all others get a reason.

    First each op by itself (override, kernel, dtype, region of the user's stubs). Then regions: an op without weights
    stays fp32 if more of its edges lead to fp32 than to int8, and a region without a weighted op stays fp32 as a whole.

    Args:
        refused: why a layer cannot have the weights that an override names, by path.
    """
    return _Assigner(gm, backend, config, values).assign(refused or {})


class _Assigner:
    def __init__(
        self, gm: fx.GraphModule, backend: Backend, config: ResolvedConfig, values: Mapping[fx.Node, ValueInfo]
    ) -> None:
        self.gm, self.backend, self.config, self.values = gm, backend, config, values
        self.modules = dict(gm.named_modules())
        self.matched = match_units(gm)
        self.owner = {n: u for u in self.matched.units for n in u.nodes}
        self.reasons: dict[fx.Node, str] = {}

    def assign(self, refused: Mapping[str, str]) -> Assignment:
        outside = _outside_stubs(self.gm)
        for unit in self.matched.units:
            reason = OUTSIDE_STUBS if unit.root in outside else self._own_reason(unit)
            if reason:
                named = self.config.dynamic_dtype(unit.root) is not None
                self.reasons[unit.root] = refused.get(str(unit.root.target), reason) if named else reason
        self._settle_regions()
        passed = tuple(self._passed())
        return Assignment(self.backend, self.matched, self.reasons, self.config, self.values, passed)

    def _own_reason(self, unit: Unit) -> str | None:
        """Why the unit itself cannot or should not be int8."""
        row, root, binding = unit.row, unit.root, binding_of(self.backend, unit.row)
        for node in unit.nodes:
            if self.config.of(node) is None:
                return f"left in fp32 by override {self.config.key_of(node)!r}"
        if self.config.dynamic_dtype(root) and binding.dynamic is not None:
            return f"takes and returns fp32, as override {self.config.key_of(root)!r} asks"
        if row.weighted and root.op != "call_module":
            return "its weight is computed in forward(), not a parameter of a module"
        if row.output is Output.FLOAT:
            return row.reason + (DYNAMIC_HINT if binding.dynamic is not None else "")
        if not binding.int8:
            return binding.reason
        module = called_module(root, self.modules)
        call = Call(root, module, self.values)
        if row.output is Output.WEIGHT_ONLY:
            return self._refusal(unit, call)
        if any(node in self.values and self.values[node].is_mask for node in (*unit.inputs, *unit.nodes)):
            return "its values hold -inf, which int8 cannot hold"
        for node in unit.inputs:
            if node in self.values and not self.values[node].is_float:
                return f"its input '{node.name}' is {str(self.values[node].dtype).removeprefix('torch.')}, not float"
        if not unit.inputs:
            return "it reads no tensor that could be quantized"
        if root not in self.values and not (row.multiple and all(map(_picks_one, root.users))):
            return "it returns several tensors, which are not read one by one"
        if module is not None and is_hooked(module):
            return HOOKED
        reason = self._refusal(unit, call)
        if reason:
            return reason
        sizes = [n.name for n in root.all_input_nodes if n not in self.values]
        if sizes and unit.row.output is not Output.SHARED:
            return f"its argument '{sizes[0]}' is a size"
        return binding.prefer_fp32 if binding.prefer_fp32 and self.config.key_of(root) is None else None

    def _refusal(self, unit: Unit, call: Call) -> str | None:
        """Why this call of the op cannot be int8: in general, or on this backend."""
        for refuse in (unit.row.refuse, binding_of(self.backend, unit.row).refuse):
            reason = refuse(call) if refuse else None
            if reason:
                return reason
        return None

    def _settle_regions(self) -> None:
        """Move units without weights to fp32 if that saves borders, and regions without a weighted unit as a whole."""
        int8 = self._fewest_borders()
        for unit in self.matched.units:
            if unit.root not in self.reasons and unit.root not in int8 and unit.row.output is not Output.WEIGHT_ONLY:
                shared = unit.row.output is Output.SHARED
                self.reasons[unit.root] = INPUT_IS_FP32 if shared else BORDERS_COST_MORE
        for region in self._regions():
            if not any(u.row.weighted for u in region):
                self.reasons |= {u.root: NO_GAIN for u in region if self.config.key_of(u.root) is None}

    def _fewest_borders(self) -> frozenset[Any]:
        """Roots of the units that are int8 if the fewest values cross between int8 and fp32.

        A crossing is free if the op can return fp32. Units with a weight or an override stay where they are; an op that
        passes integers on is int8 only with its inputs. Among equal choices, the one with most int8 is taken.
        """
        fp32: dict[Any, float] = {}
        passed = list(self._passed())
        for unit in self.matched.units:
            if unit.root in self.reasons or unit.row.output is Output.WEIGHT_ONLY:
                continue
            fixed = unit.row.weighted or self.config.key_of(unit.root) is not None
            fp32[unit.root] = math.inf if fixed and unit.row.output is not Output.SHARED else _PREFER_INT8
        units = {u.root: u for u in self.matched.units if u.root in fp32}
        crossings = [Crossing(p.maker, p.readers, _BORDER, 0 if p.free else _BORDER) for p in passed]
        return PrecisionCosts(dict.fromkeys(fp32, 0.0), fp32, crossings, list(tied(units, passed))).cheapest()

    def _passed(self) -> Iterator[PassedValue]:
        """Every value that units make or read."""
        inside = [u for u in self.matched.units if u.row.output is not Output.WEIGHT_ONLY]
        for value in dict.fromkeys(n for u in inside for n in (*u.inputs, u.output)):
            readers = frozenset(self._side(r) for r in value.users if self._reads_tensor(r, value))
            free = value in self.owner and binding_of(self.backend, self.owner[value].row).float_output
            yield PassedValue(value, self._side(value), readers, free)

    def _side(self, node: fx.Node) -> fx.Node | None:
        unit = self.owner.get(node)
        return unit.root if unit is not None and self._is_int8(unit) else OUTSIDE

    def _is_int8(self, unit: Unit) -> bool:
        return unit.root not in self.reasons and unit.row.output is not Output.WEIGHT_ONLY

    def _reads_tensor(self, user: fx.Node, value: fx.Node) -> bool:
        """Whether ``user`` computes on ``value``; it may also be a size that it is given."""
        unit = self.owner.get(user)
        inner = unit is not None and user is not unit.root
        return not reads_size(user, self.owner, self.values) and (unit is None or inner or value in unit.inputs)

    def _regions(self) -> list[list[Unit]]:
        """The int8 units that are connected."""
        graph: nx.Graph[Unit] = nx.Graph()
        for unit in filter(self._is_int8, self.matched.units):
            graph.add_node(unit)
            sources = (self.owner[s] for s in unit.inputs if s in self.owner)
            graph.add_edges_from((source, unit) for source in sources if self._is_int8(source))
        return [list(c) for c in nx.connected_components(graph)]


def _picks_one(user: fx.Node) -> bool:
    return user.target is operator.getitem and isinstance(user.args[1], int)


def _outside_stubs(gm: fx.GraphModule) -> set[fx.Node]:
    """Nodes that no ``QuantStub`` leads to; none if the model has no stubs."""
    nodes = list(gm.graph.nodes)
    if not any(n.target in (quant_stub, dequant_stub) for n in nodes):
        return set()
    inside: set[fx.Node] = set()
    for node in nodes:
        follows = node.target is not dequant_stub and any(n in inside for n in node.all_input_nodes)
        if node.target is quant_stub or follows:
            inside.add(node)
    return set(nodes) - inside
