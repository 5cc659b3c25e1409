"""Decide for every op whether it runs in int8 or fp32, and why. An analysis: the graph is not changed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
from torch import fx, nn

from ..backends.base import Call, OpTable, Output
from ..backends.units import Matched, Unit, match_units
from ..compiler.config import QuantConfig
from ..compiler.overrides import ResolvedConfig
from ..compiler.types import ValueInfo
from .precision_cut import OUTSIDE, Crossing, PrecisionCosts
from .sharing import HOOKED, is_hooked

OUTSIDE_STUBS = "outside of the model's QuantStub/DeQuantStub region"
NO_GAIN = "an int8 region without conv or linear gains nothing over its borders"
MIXED = "its surroundings are fp32: the borders would cost more than int8 saves"
PASSES = "its input is fp32 and passes through"

_BORDER, _PREFER_INT8 = 10**6, 1  # costs: borders count first, then int8 units


@dataclass(frozen=True)
class Assignment:
    """Units of a graph, the reason of each that stays fp32, and the configuration of the others.

    ``passed`` are the values between units, before anything is placed between them.
    """

    matched: Matched
    reasons: Mapping[fx.Node, str]
    config: ResolvedConfig
    values: Mapping[fx.Node, ValueInfo]
    passed: Sequence[Passed]

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
    gm: fx.GraphModule,
    table: OpTable,
    config: ResolvedConfig,
    values: Mapping[fx.Node, ValueInfo],
    refused: Mapping[str, str] | None = None,
) -> Assignment:
    """Units that can and should be int8, all else with a reason.

    First each op for itself (override, kernel, dtype, region of the user's stubs); then regions: an op without
    weights stays fp32 where more of its edges lead to fp32 than to int8, and a region without a weighted op
    stays fp32 as a whole. ``refused`` says, by path, why a layer cannot have the weights that an override names.
    """
    matched = match_units(gm, table)
    modules = dict(gm.named_modules())
    outside = _outside_stubs(gm, table)
    reasons: dict[fx.Node, str] = {}
    for unit in matched.units:
        reason = (OUTSIDE_STUBS if unit.root in outside else None) or _own_reason(unit, modules, config, values)
        if reason:
            named = config.dynamic(unit.root) is not None
            reasons[unit.root] = (refused or {}).get(str(unit.root.target), reason) if named else reason
    _settle(matched, reasons, config, values)
    return Assignment(matched, reasons, config, values, tuple(_passed(matched, reasons, values)))


def _own_reason(
    unit: Unit, modules: dict[str, nn.Module], config: ResolvedConfig, values: Mapping[fx.Node, ValueInfo]
) -> str | None:
    rule, root = unit.rule, unit.root
    key = config.key_of(root)
    for node in unit.nodes:
        if config.of(node) is None:
            return f"left in fp32 by override {config.key_of(node)!r}"
    if config.dynamic(root) and rule.dynamic is not None:
        return f"takes and gives fp32, as override {key!r} asks for"
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
    if module is not None and is_hooked(module):
        return HOOKED
    reason = rule.refuse(Call(root, module, values)) if rule.refuse else None
    if reason:
        return reason
    return rule.prefer_float if rule.prefer_float and key is None else None


def _settle(
    matched: Matched, reasons: dict[fx.Node, str], config: ResolvedConfig, values: Mapping[fx.Node, ValueInfo]
) -> None:
    """Move units without weights to fp32 where that saves borders, and regions without a weighted unit as a whole."""
    owner = {n: u for u in matched.units for n in u.nodes}
    int8 = _fewest_borders(matched, reasons, config, values)
    for unit in matched.units:
        if unit.root not in reasons and unit.root not in int8 and unit.rule.output is not Output.WEIGHT_ONLY:
            reasons[unit.root] = PASSES if unit.rule.output is Output.SHARED else MIXED
    for region in _regions(matched, owner, reasons):
        if not any(u.rule.weighted for u in region):
            reasons |= {u.root: NO_GAIN for u in region if config.key_of(u.root) is None}


def _fewest_borders(
    matched: Matched, reasons: Mapping[fx.Node, str], config: ResolvedConfig, values: Mapping[fx.Node, ValueInfo]
) -> frozenset[Any]:
    """Roots of the units that are int8 where the fewest values cross between int8 and fp32.

    None crosses where its op can give fp32 as well. What has a weight, or an override, stays where it is; what passes
    integers through is int8 only with its inputs. Among equals the choice with most int8 is taken.
    """
    fp32: dict[Any, float] = {}
    passed = list(_passed(matched, reasons, values))
    for unit in matched.units:
        if unit.root in reasons or unit.rule.output is Output.WEIGHT_ONLY:
            continue
        fixed = unit.rule.weighted or config.key_of(unit.root) is not None
        fp32[unit.root] = math.inf if fixed and unit.rule.output is not Output.SHARED else _PREFER_INT8
    units = {u.root: u for u in matched.units if u.root in fp32}
    crossings = [Crossing(p.maker, p.readers, _BORDER, 0 if p.free else _BORDER) for p in passed]
    return PrecisionCosts(dict.fromkeys(fp32, 0.0), fp32, crossings, list(tied(units, passed))).cheapest()


@dataclass(frozen=True)
class Passed:
    """A value and the units, by their roots, that make and read it; :data:`OUTSIDE` for all that stays fp32.

    ``free``: its op can give it in fp32 as well as in int8.
    """

    value: fx.Node
    maker: fx.Node | None
    readers: frozenset[fx.Node | None]
    free: bool


def tied(units: Mapping[fx.Node, Unit], passed: Sequence[Passed]) -> Iterator[tuple[Any, Any]]:
    """Pairs of ops, by their roots, of which the first is int8 only if the second is, too.

    What passes integers through has none without its inputs; and the parts of a tensor are picked from integers or from
    fp32, all alike. ``units`` are those that may be int8.
    """
    for value in passed:
        maker = value.maker if value.maker in units else OUTSIDE
        readers = [r if r in units else OUTSIDE for r in value.readers]
        yield from ((r, maker) for r in readers if r is not OUTSIDE and units[r].rule.output is Output.SHARED)
        if maker is not OUTSIDE and units[maker].rule.multiple:
            yield from ((maker, r) for r in readers)


def _passed(matched: Matched, reasons: Mapping[fx.Node, str], values: Mapping[fx.Node, ValueInfo]) -> Iterator[Passed]:
    """Every value that units make or read."""
    owner = {n: u for u in matched.units for n in u.nodes}

    def side(node: fx.Node) -> fx.Node | None:
        unit = owner.get(node)
        known = unit is not None and unit.root not in reasons and unit.rule.output is not Output.WEIGHT_ONLY
        return unit.root if known and unit is not None else OUTSIDE

    inside = [u for u in matched.units if u.rule.output is not Output.WEIGHT_ONLY]
    for value in dict.fromkeys(n for u in inside for n in (*u.inputs, u.output)):
        readers = frozenset(side(r) for r in value.users if _reads_tensor(r, value, owner, values))
        free = value in owner and owner[value].rule.float_output
        yield Passed(value, side(value), readers, free)


def _reads_tensor(
    user: fx.Node, value: fx.Node, owner: Mapping[fx.Node, Unit], values: Mapping[fx.Node, ValueInfo]
) -> bool:
    """Whether ``user`` computes on ``value``, which may also be a size it is given."""
    unit = owner.get(user)
    inner = unit is not None and user is not unit.root
    return not reads_size(user, owner, values) and (unit is None or inner or value in unit.inputs)


def reads_size(user: fx.Node, owner: Mapping[fx.Node, Unit], values: Mapping[fx.Node, ValueInfo]) -> bool:
    """Whether ``user`` asks only for the shape: neither an int8 nor an fp32 reader."""
    return user not in owner and user not in values and user.op != "output"


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
