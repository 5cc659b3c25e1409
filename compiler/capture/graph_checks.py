"""Whether a captured graph computes what forward() computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from ..core.errors import CaptureError
from ..execution.interface import ANY_CALL, Interface
from ..execution.rng import draws, may_draw, restored_rng
from ..execution.sample import Batch
from ..execution.state import changed_names, state_of

RELATIVE = 1e-3  # of the largest value: folding and another order of sums change the last digits
FLIPPED = 0.01  # of the integers: an arg-max may change where two values are nearly the same


def computes_the_same(gm: fx.GraphModule, model: nn.Module, interface: Interface, batch: Batch) -> bool:
    """Whether ``gm`` and ``model`` give the same on ``batch`` up to fp32 rounding.

    Also True if they differ, but draw random numbers, and perhaps in another order. False if one of them fails.
    """
    modules = dict(gm.named_modules())
    may_differ = any(draws(node, modules) for node in gm.graph.nodes)
    try:
        # Not gm itself: its __call__ prints where it fails.
        expected, given = (_run(run, batch, _may_draw(gm)) for run in (model, gm.forward))
        theirs, ours = pytree.tree_leaves(expected), pytree.tree_leaves(interface.rebuilt(given))
    except Exception:
        return False
    return may_differ or (len(ours) == len(theirs) and all(map(_same, ours, theirs)))


def is_captured(gm: fx.GraphModule, model: nn.Module, batch: Batch) -> bool:
    """Whether ``gm`` computes what ``model`` computes on ``batch``; also if ``model`` fails on it."""
    gm.graph.eliminate_dead_code()  # as later rewrites do
    gm.recompile()
    try:
        _run(model, batch, _may_draw(gm))
    except Exception:
        return True
    return computes_the_same(gm, model, ANY_CALL, batch)


def refuse_state(model: nn.Module, batch: Batch) -> None:
    """Refuse a model that computes from what its forward() changes.

    Raises:
        CaptureError: two calls on ``batch`` give different results.
    """
    try:
        _run(model, batch, seeded=False)  # what is set in the first call alone is no state
        changed = _changes(model, batch, seeded=False)
        if changed:  # or its random numbers differ
            changed = _changes(model, batch, seeded=True)
    except Exception:
        return  # the capture, or the first batch, names the cause
    if changed:
        raise CaptureError(
            f"forward() changes {', '.join(map(repr, changed[:3]))} and computes from it.\n"
            "Make it an input and a result of forward(), or use scheme='dynamic'."
        )


def _changes(model: nn.Module, batch: Batch, seeded: bool) -> list[str]:
    """What a call changes, if the next call gives another result."""
    before = state_of(model)
    first = _run(model, batch, seeded)
    changed = changed_names(before, state_of(model))
    again = _run(model, batch, seeded) if changed else first
    ours, theirs = map(pytree.tree_leaves, (first, again))
    return [] if len(ours) == len(theirs) and all(map(_same, ours, theirs)) else changed


def _may_draw(gm: fx.GraphModule) -> bool:
    modules = dict(gm.named_modules())
    return any(may_draw(node, modules) for node in gm.graph.nodes)


def _run(run: Callable[..., Any], batch: Batch, seeded: bool) -> Any:
    args, kwargs = pytree.tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, batch)  # it may write to them
    with torch.no_grad():
        if not seeded:
            return run(*args, **kwargs)
        with restored_rng():
            torch.default_generator.manual_seed(0)
            return run(*args, **kwargs)


def _same(ours: Any, theirs: Any) -> bool:
    if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor):
        return not isinstance(ours, Tensor) and not isinstance(theirs, Tensor)
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    if not theirs.numel():
        return True
    if not ours.is_floating_point():
        return float((ours != theirs).double().mean()) <= FLIPPED
    finite = theirs[torch.isfinite(theirs)]
    largest = float(finite.abs().amax()) if finite.numel() else 0.0
    return torch.allclose(ours, theirs, rtol=RELATIVE, atol=RELATIVE * largest, equal_nan=True)


def same_sizes(interface: Interface, inputs: Mapping[str, Any]) -> list[set[Any]]:
    """The symbols among the sizes of ``inputs``, together where they have the same size on the same axis."""
    found: dict[tuple[int, int], set[Any]] = {}
    for leaf, value in zip(interface.leaves, pytree.tree_leaves(dict(inputs)), strict=True):
        for axis, size in enumerate(leaf.sizes or ()):
            if not isinstance(size, int):
                found.setdefault((axis, value.shape[axis]), set()).update(size.free_symbols)
    return list(found.values())


def with_size_one(interface: Interface, inputs: Mapping[str, Any], symbols: set[Any]) -> dict[str, Any]:
    """``inputs`` with sizes of 1 where ``symbols`` stand."""
    values, structure = pytree.tree_flatten(dict(inputs))
    made = []
    for leaf, value in zip(interface.leaves, values, strict=True):
        for axis, size in enumerate(leaf.sizes or ()):
            if size in symbols:
                value = value.narrow(axis, 0, 1)
        made.append(value)
    found: dict[str, Any] = pytree.tree_unflatten(made, structure)
    return found
