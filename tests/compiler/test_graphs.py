"""Copies of graphs: every node in any structure finds its copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from fxquant.compiler.execution.graphs import copy_graph, with_nodes


@dataclass(frozen=True)
class Note:
    node: fx.Node
    readers: tuple[fx.Node, ...]
    text: str


def graph() -> fx.GraphModule:
    return fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))


def test_nodes_are_replaced_in_any_structure() -> None:
    gm = graph()
    copied = copy_graph(gm)
    x, linear, relu, _ = gm.graph.nodes
    held: Any = {linear: [Note(x, (linear, relu), "text")], "set": {relu}, "plain": (1, None)}
    mapped = with_nodes(held, copied.of)
    note = mapped[copied.of[linear]][0]
    assert note == Note(copied.of[x], (copied.of[linear], copied.of[relu]), "text")
    assert mapped["set"] == {copied.of[relu]} and mapped["plain"] is held["plain"]
    assert held[linear][0].node is x


def test_what_holds_no_node_is_kept_and_unknown_nodes_stay() -> None:
    gm, other = graph(), graph()
    copied = copy_graph(gm)
    foreign = next(iter(other.graph.nodes))
    assert with_nodes(foreign, copied.of) is foreign
    note = Note(foreign, (), "text")
    assert with_nodes(note, copied.of) is note


def test_a_rewrite_of_the_copy_leaves_the_original() -> None:
    gm = graph()
    copied = copy_graph(gm)
    relu = next(n for n in copied.module.graph.nodes if n.name == "_1")
    relu.replace_all_uses_with(relu.args[0])
    copied.module.graph.erase_node(relu)
    copied.module.recompile()
    x = torch.randn(3, 4)
    assert torch.equal(gm(x), copied.module(x).relu()) and copied.module.get_submodule("0") is gm.get_submodule("0")
