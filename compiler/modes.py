"""Training mode in a traced graph: dropout, and other arguments that depend on ``self.training``.

A graph is traced in eval mode. Traced again in training mode, the same forward differs from it in the arguments
that read ``self.training``; where it differs in more, no one graph serves both.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from ..backends.base import OpTable
from .capture import Captured
from .errors import CaptureError, where
from .overrides import module_path
from .stubs import STUBS


class Dropout(nn.Module):
    """A function that drops values while the module in whose forward it stands is in training mode."""

    def __init__(self, owner: nn.Module, drop: Callable[..., Tensor], p: float) -> None:
        super().__init__()
        self._owner, self.drop, self.p = (owner,), drop, p  # in a tuple: no submodule

    def forward(self, x: Tensor) -> Tensor:
        """``x``, or what is left of it."""
        return self.drop(x, self.p, self._owner[0].training)


class ByMode(nn.Module):
    """An argument with one value while the module in whose forward it stands is in training mode, and another else."""

    def __init__(self, owner: nn.Module, training: Any, evaluating: Any) -> None:
        super().__init__()
        self._owner, self.training_value, self.evaluating_value = (owner,), training, evaluating

    def forward(self) -> Any:
        """The value at present."""
        return self.training_value if self._owner[0].training else self.evaluating_value


@dataclass
class Modes:
    """What of a graph depends on the mode.

    Attributes:
        dropouts: modules that do nothing in eval mode, by the nodes that stand for them.
        taken: for each that was taken out of the graph, in order, what read it, and at which place.
        placed: the nodes that depend on the mode, while the graph is one for training.
    """

    dropouts: dict[fx.Node, nn.Module] = field(default_factory=dict)
    taken: dict[fx.Node, list[tuple[fx.Node, int]]] = field(default_factory=dict)
    placed: list[fx.Node] = field(default_factory=list)

    def take_out(self, gm: fx.GraphModule) -> None:
        """Let what reads a dropout read what that drops from, so that the graph is as at inference."""
        for node in list(gm.graph.nodes):
            if node in self.dropouts:
                self.taken[node] = list(_uses(node))
                node.replace_all_uses_with(node.args[0])
                gm.graph.erase_node(node)
        gm.recompile()

    def put_back(self, gm: fx.GraphModule) -> None:
        """Drop values again, behind the fake-quants that were placed since.

        Readers that read an int8 and an fp32 form of one value have masks of their own.
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
                    # It would overwrite what the backward of rounding reads, and what readers before it read.
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
        """Make the graph one for inference."""
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
    """The readers of ``node`` and its places in their arguments; of stubs, which will go, their readers."""
    for user in node.users:
        if user.target in STUBS.values():
            yield from _uses(user)
        else:
            yield from ((user, place) for place, n in enumerate(_inputs(user)) if n is node)


def _inputs(node: fx.Node) -> list[fx.Node]:
    """The nodes among the arguments of ``node``, in order, each as often as it stands there."""
    found: list[fx.Node] = []
    map_arg((node.args, node.kwargs), found.append)
    return found


def _replace_input(node: fx.Node, place: int, value: Any) -> None:
    """Let the argument that :func:`_inputs` has at ``place`` be ``value``."""
    places: Iterator[int] = iter(range(len(_inputs(node))))
    node.args, node.kwargs = map_arg((node.args, node.kwargs), lambda n: value if next(places) == place else n)


def find_modes(captured: Captured, tree: nn.Module, table: OpTable) -> Modes:
    """What of a captured graph depends on the mode; arguments that do become calls of :class:`ByMode`.

    Args:
        captured: the forward of ``tree`` in both modes.

    Raises:
        CaptureError: the forward takes another path in training mode.
    """
    gm, modes, dropout = captured.module, Modes(), table["dropout"]
    modules = dict(gm.named_modules())
    # Traces of different lengths differ at the output of the shorter one.
    pairs = list(zip(gm.graph.nodes, captured.training.nodes, strict=False))
    same = {theirs: ours for ours, theirs in pairs}
    for ours, theirs in pairs:
        if not _same_target(ours, theirs, tree):
            raise _other_path(theirs)
        owner, drops = tree.get_submodule(module_path(ours)), table.of(ours, modules) is dropout
        if drops or str(ours.target) in captured.identities:
            if [same.get(n) for n in theirs.all_input_nodes] != ours.all_input_nodes:
                raise _other_path(theirs)
            if ours.op == "call_module":
                modes.dropouts[ours] = modules[str(ours.target)]
                continue
            now, then = (_arguments(node) for node in (ours, theirs))
            if now["training"] is False and then["training"] is True:
                modes.dropouts[ours] = Dropout(owner, ours.target, then["p"])
                continue

        def by_mode(evaluating: Any, training: Any, ours: fx.Node = ours, owner: nn.Module = owner) -> fx.Node:
            name = f"{ours.name}_mode_{len(modes.placed)}"
            gm.add_module(name, ByMode(owner, training, evaluating))
            with gm.graph.inserting_before(ours):
                modes.placed.append(gm.graph.call_module(name))
            return modes.placed[-1]

        merge = _Merge(same, by_mode, theirs)
        ours.args, ours.kwargs = merge(ours.args, theirs.args), merge(ours.kwargs, theirs.kwargs)
    return modes


def _same_target(ours: fx.Node, theirs: fx.Node, tree: nn.Module) -> bool:
    """Whether both nodes are of one kind; tracing numbers the constants of a forward anew each time."""
    constants = [str(n.target).startswith("_tensor_constant") and n.op == "get_attr" for n in (ours, theirs)]
    if all(constants):
        a, b = (getattr(tree, str(n.target)) for n in (ours, theirs))
        return a.dtype == b.dtype and torch.equal(a, b)
    return (ours.op, ours.target) == (theirs.op, theirs.target)


def _arguments(call: fx.Node) -> dict[str, Any]:
    """The arguments of a call of a function by name, with its defaults."""
    bound = inspect.signature(call.target).bind(*call.args, **call.kwargs)  # type: ignore[arg-type]
    bound.apply_defaults()
    return bound.arguments


@dataclass(frozen=True)
class _Merge:
    """Arguments that a node has in both traces, as those of one node."""

    same: Mapping[fx.Node, fx.Node]  # nodes of the graph by those of the trace in training mode
    by_mode: Callable[[Any, Any], fx.Node]
    node: fx.Node  # of the trace in training mode

    def __call__(self, ours: Any, theirs: Any) -> Any:
        if isinstance(theirs, fx.Node):
            if self.same.get(theirs) is not ours:
                raise _other_path(self.node)
            return ours
        if type(ours) is type(theirs) and isinstance(ours, list | tuple) and len(ours) == len(theirs):
            parts = [self(a, b) for a, b in zip(ours, theirs, strict=True)]
            return type(ours)(*parts) if hasattr(ours, "_fields") else type(ours)(parts)
        if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
            return {key: self(ours[key], theirs[key]) for key in ours}
        if isinstance(ours, slice) and isinstance(theirs, slice):
            return slice(*(self(getattr(ours, k), getattr(theirs, k)) for k in ("start", "stop", "step")))
        if isinstance(ours, fx.Node):
            raise _other_path(self.node)
        return ours if ours is theirs or ours == theirs else self.by_mode(ours, theirs)


def _other_path(node: fx.Node) -> CaptureError:
    return CaptureError(
        f"The forward takes another path in training mode than in eval mode, at {where(node)}. Training through a "
        "graph needs one path for both: return the same in both modes (turn auxiliary outputs off, or always on), or "
        "put the line that asks for the mode into a module of its own, and name that in leaf_modules."
    )
