"""What a step of a random program is: it makes a value from one or two earlier ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Run = Callable[[Any, Tensor, Tensor], Tensor]  # of the layers of the step, and its two values


@dataclass(frozen=True)
class Site:
    """Where a step is: the shapes of its two values, and a number that chooses among variants."""

    a: torch.Size
    b: torch.Size
    n: int

    def pick(self, *variants: Any) -> Any:
        return variants[self.n % len(variants)]


@dataclass(frozen=True)
class Step:
    """One kind of step.

    Attributes:
        fits: whether it can stand at a site.
        layers: makes its layers.
        run: computes its value; what it decides by the site, it decides when the program is built.
    """

    fits: Callable[[Site], bool]
    run: Callable[[Site], Run]
    layers: Callable[[Site], list[nn.Module]] = lambda site: []


STEPS: dict[str, Step] = {}


def image(s: Site) -> bool:
    return len(s.a) == 4


def tokens(s: Site) -> bool:
    return len(s.a) == 3


def both(s: Site) -> bool:
    return image(s) or tokens(s)


def alike(s: Site) -> bool:
    return s.a == s.b


def step(name: str, fits: Any, run: Any, layers: Any = lambda s: []) -> None:
    STEPS[name] = Step(fits, run, layers)


def plain(name: str, fits: Any, *runs: Run) -> None:
    """Variants without layers."""
    STEPS[name] = Step(fits, lambda s: s.pick(*runs))


def layer(name: str, fits: Any, make: Callable[[Site], nn.Module], *runs: Run) -> None:
    """Variants with one layer."""
    STEPS[name] = Step(fits, lambda s: s.pick(*runs), lambda s: [make(s)])
