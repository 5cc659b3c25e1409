r"""Scale channels across layers so that activation ranges agree (SmoothQuant, Xiao et al. 2023, arXiv:2211.10438).

All channels of an activation have one step, which the widest channel determines. Dividing channel ``c`` by :math:`s_c`
in the layer or normalization that makes it, and multiplying the weights that read it, moves the difficulty from the
activation to the weights. SmoothQuant has one exponent for a model. Here :math:`s_c = \max|x_c|^\alpha`, with the
:math:`\alpha` of least noise at the output of the model for each group of values whose channels are tied; and only
where the noise falls at the outputs of the layers that read the values, too
(:mod:`fxquant.passes.analysis.rounding_noise`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import torch
from torch import Tensor, fx

from ...compiler.execution.sample import Batch
from ..analysis.assignment import Assignment
from ..analysis.channels import Port, ScaleClasses, scale_classes
from ..analysis.rounding_noise import NoiseMeter
from ..analysis.statistics import ChannelStatistics, channel_statistics
from ..base import PassResult
from ..layers.layer_weight import by_channels
from .equalize import apply_scale

EXPONENTS = (0.0, 0.5, 1.0)
MEASURED = 4  # batches that noise is measured with
VALUES = 64  # least number of values of a channel in the sample: the largest of fewer says too little
PROMISE = 0.6  # a group is tried if equal ranges would leave at most this share of the noise of its activation
GAIN = 0.9  # nothing is changed unless the noise falls to this share
NOT_TRIED = "no channel is much wider than the others, or the sample is too small"
LEAST = 1e-3  # a channel below this share of the widest range is scaled as if it had this share


@dataclass(frozen=True)
class Reader:
    """A layer that reads ``value`` in int8."""

    port: Port
    value: fx.Node

    @property
    def node(self) -> fx.Node:
        return self.port.node


@dataclass(frozen=True, eq=False)
class Group:
    """Readers of values whose channels are tied, the layers that make them, and scales per class to try."""

    readers: tuple[Reader, ...]
    givers: tuple[fx.Node, ...]
    scales: tuple[Tensor, ...]


class Smooth:
    """Exact. Refuses a layer whose outputs cannot be scaled or would not gain. Scales a layer once.

    Args:
        assignment: which layers are int8, and how.
        sample: batches to take ranges from.
        refuse: the reason why a layer must be left as it is, or None.
    """

    name = "smooth"
    exact = True

    def __init__(
        self,
        assignment: Assignment,
        sample: Sequence[Batch],
        refuse: Callable[[fx.Node], str | None],
    ) -> None:
        self.assignment, self.sample, self.refuse = assignment, sample, refuse
        self.units = {u.root: u for u in assignment.int8_units}
        self._smoothed: set[fx.Node] = set()

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        classes = scale_classes(gm, self.sample[0], self._refuse)
        refusals = {n: f"not smoothed: {r}" for n, r in classes.refusals.items()}
        readers = [
            Reader(p, classes.inputs[p.node][0])
            for p in classes.consumers
            if p.node in self.units and classes.free[p.slots].any()
        ]
        if not readers:
            return PassResult(0, refusals)
        groups = self._groups(gm, readers, classes)
        tried = [g for g in groups if len(g.scales) > 1]
        refusals |= {n: f"not smoothed: {NOT_TRIED}" for g in groups if g not in tried for n in g.givers}
        if not tried:
            return PassResult(0, refusals)
        trials = {r.node: [s[r.port.slots] for s in g.scales] for g in tried for r in g.readers}
        meter = NoiseMeter(gm, trials, self.assignment, self.sample[:MEASURED])
        scale, remarks = torch.ones(classes.count), dict[fx.Node, str]()
        for group in tried:
            totals = torch.stack([meter.noise[r.node] for r in group.readers]).sum(0)
            if _share(totals) <= GAIN:  # noise may fall there in places that make no difference later
                totals = meter.output_noise([r.node for r in group.readers])
            share = _share(totals)
            if share <= GAIN:
                scale *= group.scales[int(totals.argmin())]
                text = f"smoothed: channel ranges equalized, {share:.0%} of the noise is left"
                remarks |= dict.fromkeys(group.givers, text)
            else:
                text = f"not smoothed: {share:.0%} of the noise would be left"
                refusals |= dict.fromkeys(group.givers, text)
        changed = apply_scale(classes, scale)
        self._smoothed.update(changed)
        return PassResult(len(changed), refusals, {n: r for n, r in remarks.items() if n in changed})

    def _groups(self, gm: fx.GraphModule, readers: Sequence[Reader], classes: ScaleClasses) -> list[Group]:
        """Readers whose values have a class of channels in common."""
        axes = {r.value: classes.inputs[r.node][1] for r in readers}
        statistics = channel_statistics(gm, axes, self.sample)
        graph: nx.Graph[Any] = nx.Graph()
        for reader in readers:
            graph.add_edges_from((reader.node, slot) for slot in reader.port.slots.unique().tolist())
        by_node = {r.node: r for r in readers}
        parts = [[by_node[n] for n in part if n in by_node] for part in nx.connected_components(graph)]
        return [_group(part, classes, statistics) for part in parts]

    def _refuse(self, node: fx.Node) -> str | None:
        reason = "it is smoothed already" if node in self._smoothed else self.refuse(node)
        unit = self.units.get(node)
        if reason or unit is None or not unit.row.weighted:
            return reason
        if not (self.assignment.config_of(unit).weight_per_channel and self.assignment.binding(unit).per_channel):
            return f"the weight of '{node.name}' has one scale for all channels"
        return None


def _share(noise: Tensor) -> float:
    """The least noise by that without scaling."""
    return float(noise.min() / noise[0]) if noise[0] > 0 else 1.0


def _group(readers: Sequence[Reader], classes: ScaleClasses, statistics: Mapping[fx.Node, ChannelStatistics]) -> Group:
    """A group with its scales to try; the first changes nothing."""
    largest = torch.zeros(classes.count)
    for reader in readers:
        largest.scatter_reduce_(0, reader.port.slots, statistics[reader.value].largest, "amax")
    usable = classes.free & (largest > 0)
    even = torch.where(usable, (largest / largest.max().clamp_min(1e-30)).clamp_min(LEAST), 1.0)
    left = 0.0
    for reader in readers:
        weight = by_channels(reader.port.layer, reader.port.row).square().sum((1, 3)).flatten()
        left += float((weight * even[reader.port.slots].square()).sum() / weight.sum().clamp_min(1e-30))
    enough = all(statistics[r.value].count >= VALUES for r in readers)
    exponents = EXPONENTS if enough and left <= PROMISE * len(readers) else EXPONENTS[:1]
    read = torch.cat([r.port.slots for r in readers])
    givers = tuple(p.node for p in classes.producers if torch.isin(p.slots, read).any())
    return Group(tuple(readers), givers, tuple(even**e for e in exponents))
