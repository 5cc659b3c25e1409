"""Decide for every op whether it runs in int8 or fp32, and why. An analysis: the graph is not changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import networkx as nx
from torch import fx, nn

from ..backends.base import Call, OpTable, Output
from ..backends.units import Matched, Unit, match_units
from ..compiler.config import QuantConfig, ResolvedConfig
from ..compiler.types import ValueInfo

OUTSIDE_STUBS = "outside of the model's QuantStub/DeQuantStub region"
NO_GAIN = "an int8 region without conv or linear gains nothing over its borders"
MIXED = "most of its neighbours are fp32: the borders would cost more than int8 saves"
PASSES = "its input is fp32 and passes through"


@dataclass(frozen=True)
class Assignment:
    """Units of a graph, the reason of each that stays fp32, and the configuration of the others."""

    matched: Matched
    reasons: Mapping[fx.Node, str]
    config: ResolvedConfig
    values: Mapping[fx.Node, ValueInfo]

    def is_int8(self, unit: Unit) -> bool:
        return unit.root not in self.reasons

    def config_of(self, unit: Unit) -> QuantConfig:
        config = self.config.of(unit.root)
        assert config is not None
        return config

    @property
    def int8_units(self) -> list[Unit]:
        return [u for u in self.matched.units if self.is_int8(u)]


def assign_precision(
    gm: fx.GraphModule, table: OpTable, config: ResolvedConfig, values: Mapping[fx.Node, ValueInfo]
) -> Assignment:
    """Units that can and should be int8, all else with a reason.

    First each op for itself (override, kernel, dtype, region of the user's stubs); then regions: an op without
    weights stays fp32 where more of its edges lead to fp32 than to int8, and a region without a weighted op
    stays fp32 as a whole.
    """
    matched = match_units(gm, table)
    modules = dict(gm.named_modules())
    outside = _outside_stubs(gm, table)
    reasons: dict[fx.Node, str] = {}
    for unit in matched.units:
        reason = (OUTSIDE_STUBS if unit.root in outside else None) or _own_reason(unit, modules, config, values)
        if reason:
            reasons[unit.root] = reason
    _settle(matched, reasons, config)
    return Assignment(matched, reasons, config, values)


def _own_reason(
    unit: Unit, modules: dict[str, nn.Module], config: ResolvedConfig, values: Mapping[fx.Node, ValueInfo]
) -> str | None:
    rule, root = unit.rule, unit.root
    key = config.key_of(root)
    for node in unit.nodes:
        if config.of(node) is None:
            return f"left in fp32 by override {config.key_of(node)!r}"
    if rule.weighted and root.op != "call_module":
        return "its weight is computed in the forward, not a parameter of a module"
    if rule.output is Output.FLOAT:
        return rule.reason
    if rule.output is Output.WEIGHT_ONLY:
        return rule.refuse(Call(root, modules[str(root.target)], values)) if rule.refuse else None
    for node in unit.inputs:
        if node in values and not values[node].is_float:
            return f"its input '{node.name}' is {str(values[node].dtype).removeprefix('torch.')}, not float"
    if not unit.inputs:
        return "it reads no tensor that could be quantized"
    module = modules.get(str(root.target)) if root.op == "call_module" else None
    reason = rule.refuse(Call(root, module, values)) if rule.refuse else None
    if reason:
        return reason
    return rule.prefer_float if rule.prefer_float and key is None else None


def _settle(matched: Matched, reasons: dict[fx.Node, str], config: ResolvedConfig) -> None:
    """Move units to fp32 until none of the rules of a region applies."""
    owner = {n: u for u in matched.units for n in u.nodes}
    changed = True
    while changed:
        before = len(reasons)
        for unit in matched.units:
            if unit.root in reasons or unit.rule.weighted:
                continue
            reason = _region_reason(unit, owner, reasons, config)
            if reason:
                reasons[unit.root] = reason
        for region in _regions(matched, owner, reasons):
            if not any(u.rule.weighted for u in region):
                reasons |= {u.root: NO_GAIN for u in region if config.key_of(u.root) is None}
        changed = len(reasons) != before


def _region_reason(
    unit: Unit, owner: dict[fx.Node, Unit], reasons: dict[fx.Node, str], config: ResolvedConfig
) -> str | None:
    def int8(node: fx.Node) -> bool:
        return node in owner and owner[node].root not in reasons and owner[node].rule.output is not Output.WEIGHT_ONLY

    if unit.rule.output is Output.SHARED:
        return None if all(int8(n) for n in unit.inputs) else PASSES
    if config.key_of(unit.root) is not None:
        return None
    readers = [int8(u) for u in unit.output.users]
    # A producer that can give fp32 as well costs nothing on either side.
    sources = [int8(n) for n in unit.inputs if not (int8(n) and owner[n].rule.float_output)]
    borders_if_int8 = sources.count(False) + (False in readers)
    borders_if_fp32 = sources.count(True) + (True in readers)
    return MIXED if borders_if_int8 > borders_if_fp32 else None


def _regions(matched: Matched, owner: dict[fx.Node, Unit], reasons: dict[fx.Node, str]) -> list[list[Unit]]:
    graph: nx.Graph[Unit] = nx.Graph()
    for unit in matched.units:
        if unit.root in reasons or unit.rule.output is Output.WEIGHT_ONLY:
            continue
        graph.add_node(unit)
        for source in unit.inputs:
            if (
                source in owner
                and owner[source].root not in reasons
                and owner[source].rule.output is not Output.WEIGHT_ONLY
            ):
                graph.add_edge(owner[source], unit)
    return [list(c) for c in nx.connected_components(graph)]


def _outside_stubs(gm: fx.GraphModule, table: OpTable) -> set[fx.Node]:
    """Nodes that no ``QuantStub`` leads to; none where the model has no stubs."""
    modules = dict(gm.named_modules())
    names = {n: rule.name for n in gm.graph.nodes if (rule := table.of(n, modules)) is not None}
    if not {"quant_stub", "dequant_stub"} & set(names.values()):
        return set()
    inside: set[fx.Node] = set()
    for node in gm.graph.nodes:
        if names.get(node) == "quant_stub" or (
            names.get(node) != "dequant_stub" and any(n in inside for n in node.all_input_nodes)
        ):
            inside.add(node)
    return set(gm.graph.nodes) - inside
