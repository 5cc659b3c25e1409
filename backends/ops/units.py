"""Units: an op together with the clamps after it that its requantization does at no cost."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from ..base.op import Call, OpRow, Output
from .table import OPS

FUSED = " + "


@dataclass(frozen=True, eq=False)
class Unit:
    """A root op and the clamps (relu, relu6, hardtanh, ...) that it absorbs."""

    row: OpRow
    nodes: tuple[fx.Node, ...]

    @property
    def root(self) -> fx.Node:
        """The op itself."""
        return self.nodes[0]

    @property
    def output(self) -> fx.Node:
        """The last clamp, or the op itself."""
        return self.nodes[-1]

    @property
    def inputs(self) -> tuple[fx.Node, ...]:
        """The tensors that the op computes on."""
        return tensor_inputs(self.root, self.row)

    @property
    def name(self) -> str:
        """The names of its ops."""
        return FUSED.join([self.row.name, *(row.name for n in self.nodes[1:] if (row := OPS.find(n.target)))])


@dataclass(frozen=True)
class Matched:
    """Every op of a graph as units, in order; ``refusals`` says why a clamp is a unit by itself."""

    units: tuple[Unit, ...]
    refusals: dict[fx.Node, str]


def tensor_inputs(node: fx.Node, row: OpRow) -> tuple[fx.Node, ...]:
    """The nodes that ``node`` reads as tensors to compute on: no sizes, no parameters."""
    args = node.args[0] if row.inputs == 0 and node.args else node.args[: max(row.inputs, 1)]
    return tuple(a for a in args if isinstance(a, fx.Node)) if isinstance(args, list | tuple) else ()


def match_units(gm: fx.GraphModule) -> Matched:
    """Group the ops of a normalized or frozen graph. Every op that has a row is in exactly one unit."""
    modules = dict(gm.named_modules())
    units: list[Unit] = []
    taken: set[fx.Node] = set()
    refusals: dict[fx.Node, str] = {}
    for node in gm.graph.nodes:
        row = OPS.of(node, modules)
        if row is None or row.output is Output.META or node in taken:
            continue
        nodes = [node]
        while row.saturates and (clamp := _clamp_behind(nodes[-1], refusals)) is not None:
            nodes.append(clamp)
        taken.update(nodes)
        units.append(Unit(row, tuple(nodes)))
    return Matched(tuple(units), refusals)


def _clamp_behind(node: fx.Node, refusals: dict[fx.Node, str]) -> fx.Node | None:
    """The clamp that the unit of ``node`` can absorb; a clamp that it cannot is added to ``refusals``."""
    clamps = [u for u in node.users if u.op == "call_function" and _is_clamp(OPS.find(u.target))]
    if not clamps:
        return None
    if len(node.users) > 1:
        refusals |= dict.fromkeys(clamps, f"not absorbed: '{node.name}' has {len(node.users)} readers")
        return None
    (clamp,) = clamps
    row = OPS.find(clamp.target)
    reason = row.refuse(Call(clamp, None, {})) if row is not None and row.refuse else None
    if reason:
        refusals[clamp] = f"not absorbed: {reason}"
        return None
    return clamp


def _is_clamp(row: OpRow | None) -> bool:
    return row is not None and row.clamp is not None


def clamp_bounds(unit: Unit) -> tuple[float, float] | None:
    """The bounds that the absorbed clamps of ``unit`` leave; None if it absorbs none."""
    bounds = None
    for node in unit.nodes[1:]:
        row = OPS.find(node.target)
        assert row is not None and row.clamp is not None
        low, high = row.clamp(Call(node, None, {}))
        bounds = (low, high) if bounds is None else (max(bounds[0], low), min(bounds[1], high))
    return bounds
