"""Whether an exported graph computes what forward() computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from ..execution.interface import Interface
from ..execution.rng import may_draw

RELATIVE = 1e-4  # of the largest value: the order of sums differs


def computes_the_same(
    gm: fx.GraphModule, model: nn.Module, interface: Interface, inputs: Mapping[str, Any] | None
) -> bool:
    """Whether ``gm`` and ``model`` give the same up to fp32 rounding for ``inputs``, by name.

    True for a graph that draws random numbers, which cannot be compared.
    """
    modules = dict(gm.named_modules())
    if any(may_draw(node, modules) for node in gm.graph.nodes):
        return True
    if inputs is None:
        return False
    with torch.no_grad():
        try:
            expected, given = model(**inputs), interface.rebuilt(gm(**inputs))
        except Exception:
            return False
    ours, theirs = pytree.tree_leaves(given), pytree.tree_leaves(expected)
    return len(ours) == len(theirs) and all(map(_same, ours, theirs))


def with_size_one(interface: Interface, inputs: Mapping[str, Any], symbol: Any) -> dict[str, Any] | None:
    """``inputs`` with a size of 1 where ``symbol`` stands; None if other sizes depend on it."""
    values, structure = pytree.tree_flatten(dict(inputs))
    made = []
    for leaf, value in zip(interface.leaves, values, strict=True):
        for axis, size in enumerate(leaf.sizes or ()):
            if size == symbol:
                value = value.narrow(axis, 0, 1)
            elif not isinstance(size, int) and symbol in size.free_symbols:
                return None
        made.append(value)
    found: dict[str, Any] = pytree.tree_unflatten(made, structure)
    return found


def _same(ours: Any, theirs: Any) -> bool:
    if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor):
        return type(ours) is type(theirs) and bool(ours == theirs)
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    if not ours.is_floating_point() or not theirs.numel():
        return torch.equal(ours, theirs)
    largest = float(theirs[torch.isfinite(theirs)].abs().amax()) if torch.isfinite(theirs).any() else 0.0
    return torch.allclose(ours, theirs, rtol=RELATIVE, atol=RELATIVE * largest, equal_nan=True)
