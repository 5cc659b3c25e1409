"""torch's random number generator, touched only where a graph draws from it, and put back as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx


@contextlib.contextmanager
def restored_rng() -> Iterator[None]:
    """Put the state of torch's CPU generator back at the end.

    ``torch.random.fork_rng`` also looks at other devices, which takes longer than most ops.
    """
    state = torch.default_generator.get_state()
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


class SeededNodes:
    """Runs nodes of a graph so that those that draw random numbers draw the same for the same seed.

    Which ones do is seen the first time that they run. Only these touch the generator, which all threads share.
    """

    def __init__(self) -> None:
        self._draws: dict[fx.Node, bool] = {}

    def run(self, node: fx.Node, run: Callable[[fx.Node], Any], seed: int) -> Any:
        """The value of ``node`` that ``run`` computes."""
        if self._draws.get(node) is False:
            return run(node)
        generator = torch.default_generator
        with restored_rng():
            generator.manual_seed(seed)
            before = generator.get_state()
            value = run(node)
            self._draws[node] = not torch.equal(before, generator.get_state())
        return value
