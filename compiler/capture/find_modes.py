"""Find the parts of a graph that depend on the training mode, by comparing the traces in both modes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from ...backends.ops.table import OPS
from ..core.errors import CaptureError
from ..core.messages import where
from ..core.overrides import module_path
from .capture import BothModes
from .mode_modules import ByMode, Dropout
from .modes import Modes


def find_modes(captured: BothModes, tree: nn.Module) -> Modes:
    """The parts of a captured graph that depend on the mode. Arguments that do become calls of :class:`ByMode`.

    Args:
        captured: the traces of ``tree``.

    Raises:
        CaptureError: forward() takes another path in training mode.
    """
    gm, modes, dropout = captured.module, Modes(), OPS.find(nn.Dropout)
    modules = dict(gm.named_modules())
    # Traces of different lengths differ at the output of the shorter one.
    pairs = list(zip(gm.graph.nodes, captured.training.nodes, strict=False))
    same = {theirs: ours for ours, theirs in pairs}
    for ours, theirs in pairs:
        if not _same_target(ours, theirs, tree):
            raise _other_path(theirs)
        owner, drops = tree.get_submodule(module_path(ours)), OPS.of(ours, modules) is dropout
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
    """Whether both nodes call the same. Constants have other numbers in each trace, and are compared by value."""
    constants = [str(n.target).startswith("_tensor_constant") and n.op == "get_attr" for n in (ours, theirs)]
    if all(constants):
        a, b = (getattr(tree, str(n.target)) for n in (ours, theirs))
        return a.dtype == b.dtype and torch.equal(a, b)
    return (ours.op, ours.target) == (theirs.op, theirs.target)


def _arguments(call: fx.Node) -> dict[str, Any]:
    """The arguments of a function call by name, defaults included."""
    bound = inspect.signature(call.target).bind(*call.args, **call.kwargs)  # type: ignore[arg-type]
    bound.apply_defaults()
    return bound.arguments


@dataclass(frozen=True)
class _Merge:
    """Merges the arguments that a node has in both traces."""

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
        f"forward() takes another path in training mode than in eval mode, at {where(node)}. Quantization-aware "
        "training needs the same path in both modes: return the same values in both (auxiliary outputs always or "
        "never), or move the line that reads the mode into a module of its own and name that in leaf_modules."
    )
