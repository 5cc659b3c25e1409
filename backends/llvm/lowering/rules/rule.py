"""What a rule is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import fx

from ..builder import Builder

# Sets what the node is, and returns True; or returns False, and torch runs the op. Its inputs may be computed then.
Rule = Callable[[Builder, fx.Node], bool]


def each(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """A parameter of a window, one for each axis."""
    return (int(value),) * axes if isinstance(value, int) else tuple(int(v) for v in value) * (axes // len(value))
