"""The parts of a graph that depend on the training mode."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn
from torch.fx.node import map_arg

from ...backends.ops.stubs import STUBS
from .mode_modules import ByMode


@dataclass
class Modes:
    """The parts of a graph that depend on the training mode.

    Attributes:
        dropouts: modules that do nothing in eval mode, by the nodes that stand for them.
        taken: for each dropout that was taken out of the graph, in order: its readers, and its places among their
            arguments.
        placed: the nodes that depend on the mode, while the graph is one for training.
    """

    dropouts: dict[fx.Node, nn.Module] = field(default_factory=dict)
    taken: dict[fx.Node, list[tuple[fx.Node, int]]] = field(default_factory=dict)
    placed: list[fx.Node] = field(default_factory=list)

    def take_out(self, gm: fx.GraphModule) -> None:
        """Take the dropouts out, so that the graph is that of inference."""
        for node in list(gm.graph.nodes):
            if node in self.dropouts:
                self.taken[node] = list(_uses(node))
                node.replace_all_uses_with(node.args[0])
                gm.graph.erase_node(node)
        gm.recompile()

    def put_back(self, gm: fx.GraphModule) -> None:
        """Put the dropouts back, after the fake-quants that were placed since.

        The readers of the int8 form of a value and those of its fp32 form get different masks.
        """
        made = dict[fx.Node, list[fx.Node]]()
        for taken, uses in reversed(self.taken.items()):
            made[taken] = []
            by_value: dict[fx.Node, list[tuple[fx.Node, int]]] = {}
            for reader, place in uses:
                for now in made.get(reader, [reader]):
                    by_value.setdefault(_inputs(now)[place], []).append((now, place))
            for number, (value, readers) in enumerate(by_value.items()):
                name, module = f"{taken.name}_{number}_drop", self.dropouts[taken]
                if getattr(module, "inplace", False):
                    # It would overwrite values that the backward of the rounding, or other readers, still need.
                    setattr(module, "inplace", False)  # noqa: B010
                gm.add_module(name, module)
                with gm.graph.inserting_after(value):
                    node = gm.graph.call_module(name, (value,))
                for reader, place in readers:
                    _replace_input(reader, place, node)
                made[taken].append(node)
        self.placed += [n for nodes in made.values() for n in nodes]
        self.dropouts, self.taken = {}, {}
        gm.recompile()

    def settle(self, gm: fx.GraphModule) -> None:
        """Turn the graph into one for inference."""
        for node in self.placed:
            module = gm.get_submodule(str(node.target))
            if isinstance(module, ByMode):
                for user in list(node.users):
                    for place in [i for i, n in enumerate(_inputs(user)) if n is node]:
                        _replace_input(user, place, module.evaluating_value)
            else:
                node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
            gm.graph.erase_node(node)
        self.placed = []
        gm.recompile()


def _uses(node: fx.Node) -> Iterator[tuple[fx.Node, int]]:
    """The readers of ``node`` and its places among their arguments. Stubs will be removed: their readers count."""
    for user in node.users:
        if user.target in STUBS.values():
            yield from _uses(user)
        else:
            yield from ((user, place) for place, n in enumerate(_inputs(user)) if n is node)


def _inputs(node: fx.Node) -> list[fx.Node]:
    """The nodes among the arguments of ``node``, in order, with repetitions."""
    found: list[fx.Node] = []
    map_arg((node.args, node.kwargs), found.append)
    return found


def _replace_input(node: fx.Node, place: int, value: Any) -> None:
    """Replace the argument that :func:`_inputs` has at ``place``."""
    places: Iterator[int] = iter(range(len(_inputs(node))))
    node.args, node.kwargs = map_arg((node.args, node.kwargs), lambda n: value if next(places) == place else n)
