"""Which layers the configuration lets a pass change."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from .assignment import Assignment


class Choice:
    """Call it with the node of a layer: the reason why a pass must leave the layer as it is, or None.

    Args:
        assignment: the layers and their configurations.
        name: the field of the configuration that turns the pass on and off.
        auto: decides if that field is "auto".
    """

    def __init__(self, assignment: Assignment, name: str, auto: Callable[[fx.Node], str | None]) -> None:
        self.assignment, self.name, self.auto = assignment, name, auto

    def __call__(self, node: fx.Node) -> str | None:
        switch = self._switch(node)
        if switch is False:
            return f"turned off by {self.name}=False"
        return self.auto(node) if switch == "auto" else None

    def decided(self, node: fx.Node) -> bool:
        """Whether the configuration of ``node`` turns the pass on or off, instead of leaving it to "auto"."""
        return self._switch(node) != "auto"

    @property
    def leaves_any(self) -> bool:
        """Whether there is any int8 layer that the pass may change."""
        return any(self(u.root) is None for u in self.assignment.int8_layers)

    def _switch(self, node: fx.Node) -> object:
        return getattr(self.assignment.config.of(node) or self.assignment.config.default, self.name)


def only_with_one_scale(assignment: Assignment) -> Callable[[fx.Node], str | None]:
    """Refuses weights with a scale per channel: they need no equal ranges."""
    units = {u.root: u for u in assignment.matched.units}

    def refuse(node: fx.Node) -> str | None:
        config = assignment.config.of(node)
        if config is not None and config.weight_per_channel and assignment.binding(units[node]).per_channel:
            return f"the weight of '{node.name}' has a scale per channel"
        return None

    return refuse


def nothing_against(node: fx.Node) -> None:
    """Refuses no layer."""
