"""Units: an op together with the clamp behind it that its requantization does for free."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from .base import Call, OpRule, OpTable, Output

FUSED = " + "


@dataclass(frozen=True, eq=False)
class Unit:
    """A root op and the clamps (relu, relu6, hardtanh, ...) that it absorbs."""

    rule: OpRule
    nodes: tuple[fx.Node, ...]

    @property
    def root(self) -> fx.Node:
        return self.nodes[0]

    @property
    def output(self) -> fx.Node:
        return self.nodes[-1]

    @property
    def inputs(self) -> tuple[fx.Node, ...]:
        return tensor_inputs(self.root, self.rule)


def unit_name(unit: Unit, table: OpTable) -> str:
    """Its op, and what is fused into it."""
    return FUSED.join([unit.rule.name, *(r.name for n in unit.nodes[1:] if (r := table.of(n, {})) is not None)])


@dataclass(frozen=True)
class Matched:
    """Every op of a graph as units, in order; ``refusals`` says why a clamp stands alone."""

    units: tuple[Unit, ...]
    refusals: dict[fx.Node, str]


def tensor_inputs(node: fx.Node, rule: OpRule) -> tuple[fx.Node, ...]:
    """The nodes that ``node`` reads as tensors to compute on (not its sizes, not its parameters)."""
    args = node.args[0] if rule.inputs == 0 and node.args else node.args[: max(rule.inputs, 1)]
    return tuple(a for a in args if isinstance(a, fx.Node)) if isinstance(args, list | tuple) else ()


def match_units(gm: fx.GraphModule, table: OpTable) -> Matched:
    """Group the ops of a normalised or frozen graph. Every op with a row is in exactly one unit."""
    modules = dict(gm.named_modules())
    units: list[Unit] = []
    taken: set[fx.Node] = set()
    refusals: dict[fx.Node, str] = {}
    for node in gm.graph.nodes:
        rule = table.of(node, modules)
        if rule is None or rule.output is Output.META or node in taken:
            continue
        nodes = [node]
        while rule.saturates:
            clamps = [u for u in nodes[-1].users if _is_clamp(u, table)]
            if not clamps:
                break
            if len(nodes[-1].users) > 1:
                readers = len(nodes[-1].users)
                refusals |= dict.fromkeys(clamps, f"not absorbed: '{nodes[-1].name}' has {readers} readers")
                break
            clamp_rule = table.of(clamps[0], {})
            reason = clamp_rule.refuse(Call(clamps[0], None, {})) if clamp_rule and clamp_rule.refuse else None
            if reason:
                refusals[clamps[0]] = f"not absorbed: {reason}"
                break
            nodes.append(clamps[0])
        taken.update(nodes)
        units.append(Unit(rule, tuple(nodes)))
    return Matched(tuple(units), refusals)


def _is_clamp(node: fx.Node, table: OpTable) -> bool:
    rule = table.of(node, {}) if node.op == "call_function" else None
    return rule is not None and rule.clamp is not None


def clamp_bounds(unit: Unit, table: OpTable) -> tuple[float, float] | None:
    """The bounds that the absorbed clamps of ``unit`` leave, or None where there are none."""
    bounds = None
    for node in unit.nodes[1:]:
        rule = table.of(node, {})
        assert rule is not None and rule.clamp is not None
        low, high = rule.clamp(Call(node, None, {}))
        bounds = (low, high) if bounds is None else (max(bounds[0], low), min(bounds[1], high))
    return bounds
