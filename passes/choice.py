"""Which layers the configuration lets a pass change."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from ..backends.base import Output
from .assign_precision import Assignment


class Choice:
    """A reason why a pass must leave a layer as it is, by its configuration; call it with the layer's node.

    Args:
        assignment: the layers and their configurations.
        name: the field of the configuration that turns the pass on and off.
        auto: decides where that field is "auto".
    """

    def __init__(self, assignment: Assignment, name: str, auto: Callable[[fx.Node], str | None]) -> None:
        self.assignment, self.name, self.auto = assignment, name, auto

    def __call__(self, node: fx.Node) -> str | None:
        config = self.assignment.config.of(node)
        choice = getattr(config or self.assignment.config.default, self.name)
        if choice is False:
            return f"turned off by {self.name}=False"
        return self.auto(node) if choice == "auto" else None

    def decided(self, node: fx.Node) -> bool:
        """Whether the configuration of ``node`` turns the pass on or off, not leaving it to "auto"."""
        return getattr(self.assignment.config.of(node) or self.assignment.config.default, self.name) != "auto"

    @property
    def leaves_any(self) -> bool:
        """Whether there is any int8 layer that the pass may change."""
        units = [u for u in self.assignment.int8_units if u.rule.weighted and u.rule.output is not Output.WEIGHT_ONLY]
        return any(self(u.root) is None for u in units)


def only_with_one_scale(assignment: Assignment) -> Callable[[fx.Node], str | None]:
    """For passes that even out weight ranges: a scale per channel has done so already."""

    rules = {u.root: u.rule for u in assignment.matched.units}

    def refuse(node: fx.Node) -> str | None:
        config = assignment.config.of(node)
        if config is not None and config.weight_per_channel and rules[node].per_channel:
            return f"the weight of '{node.name}' has a scale per channel"
        return None

    return refuse
