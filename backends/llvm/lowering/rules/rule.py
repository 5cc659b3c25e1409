"""What a rule is."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from ..builder import Builder

# Sets what the node is, and returns True; or changes nothing and returns False, and torch runs the op.
Rule = Callable[[Builder, fx.Node], bool]
