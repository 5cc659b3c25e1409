"""Observers whose values a ``cat`` joins share one set of qparams: requantizing the values would round twice."""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx
from torch import fx

from ...backends.base.op import Output
from ...compiler.core.qparams import QParams
from ...compiler.execution.graphs import called_module
from ...compiler.numerics.observer import Observer, joint_qparams
from ...compiler.numerics.observers import FixedObserver
from ...compiler.numerics.stubs import observer_of
from ..analysis.assignment import Assignment


def joined_observers(gm: fx.GraphModule, assignment: Assignment) -> list[list[Observer]]:
    """Groups of observers whose values are joined; every other observer is a group by itself.

    A DenseNet concatenates the same features again and again, so the groups are joined over all its ``cat`` ops.
    """
    modules = dict(gm.named_modules())
    observers: dict[fx.Node, Observer] = {}
    units = {u.output: u for u in assignment.int8_units}
    groups: nx.Graph[Observer] = nx.Graph()
    for node in gm.graph.nodes:
        module = called_module(node, modules)
        observer = observer_of(module)
        if observer is not None:
            observers[node] = observer
            groups.add_node(observer)
            source = units.get(node.args[0])
            if source is not None and source.row.joins:
                groups.add_edges_from((observer, observers[n]) for n in source.inputs if n in observers)
        elif node in units and units[node].row.output is Output.SHARED:
            source_node = units[node].inputs[0]
            if source_node in observers:
                observers[node] = observers[source_node]
    order = {o: i for i, o in enumerate(groups)}
    return [sorted(group, key=order.__getitem__) for group in nx.connected_components(groups)]


def joined_qparams(groups: Sequence[Sequence[Observer]]) -> dict[Observer, QParams]:
    """The qparams of every observer in ``groups``, one set for each group."""
    found: dict[Observer, QParams] = {}
    for group in groups:
        members = [o for o in group if not isinstance(o, FixedObserver)]
        shared = joint_qparams(members) if len(members) > 1 else None
        found |= {o: shared if shared and o in members else o.qparams() for o in group}
    return found
