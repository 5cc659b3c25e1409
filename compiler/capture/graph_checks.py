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
from ..execution.state import SavedState, changed_names, state_of

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


def refuse_state(model: nn.Module, batch: Batch, shown: bool = False) -> None:
    """Refuse a model that computes from what its forward() changes. Its state is as before at the end.

    Args:
        shown: also refuse one that sets attributes and does not read them: somebody else may.

    Raises:
        CaptureError: a call on ``batch`` gives another result after other calls.
    """
    state = SavedState(model)
    try:
        changed, differs = _changes(model, batch, state, seeded=False)
        if differs:  # or its random numbers differ
            state.restore()
            changed, differs = _changes(model, batch, state, seeded=True)
    except Exception:
        return  # the capture, or the first batch, names the cause
    finally:
        state.restore()
    names = ", ".join(map(repr, changed[:3]))
    if differs:
        raise CaptureError(
            f"forward() changes {names} and computes from it.\n"
            "Make it an input and a result of forward(), or use scheme='dynamic'."
        )
    if shown and changed:
        raise CaptureError(f"forward() sets {names}, which Python code around it may read.")


def _changes(model: nn.Module, batch: Batch, state: SavedState, seeded: bool) -> tuple[list[str], bool]:
    """What calls after the first one change, and whether a result depends on the calls before it.

    ``state`` is that of ``model`` now.
    """
    before = state_of(model)
    first = _run(model, batch, seeded)
    if not changed_names(before, state_of(model)):
        return [], False
    before = state_of(model)
    again = [_run(model, batch, seeded)]
    changed = changed_names(before, state_of(model))
    again += [_run(model, batch, seeded) for _ in range(4 if changed else 0)]  # what counts may act rarely
    state.restore()
    before = state_of(model)
    try:
        _run(model, _other(batch), seeded)
    except Exception:
        state.restore()  # the model does not take such values
    set_once = changed_names(before, state_of(model))
    if not changed and not set_once:
        return [], False
    return changed or set_once, not all(_alike(first, other) for other in (*again, _run(model, batch, seeded)))


def _other(batch: Batch) -> Batch:
    """``batch`` with other numbers."""
    other: Batch = pytree.tree_map(
        lambda v: v.flip(0) * 0.5 if isinstance(v, Tensor) and v.is_floating_point() and v.dim() else v, batch
    )
    return other


def _alike(first: Any, second: Any) -> bool:
    ours, theirs = pytree.tree_leaves(first), pytree.tree_leaves(second)
    return len(ours) == len(theirs) and all(map(_same, ours, theirs))


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
