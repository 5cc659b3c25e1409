"""torch's random number generator, put back as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


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
