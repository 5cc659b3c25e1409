"""Slots of channels as numbers: run an op on them, read them back, join equal ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def numberings(count: int) -> list[Tensor]:
    """Positive values for ``count`` slots: their numbers from 1, and two more sets that tell a channel from a mixture.

    The maximum of several channels is not the maximum when counted backwards; a mean of random values is none of them.
    """
    up = torch.arange(1.0, count + 1)
    return [up, up.flip(0), 1 + torch.rand(count, generator=torch.Generator().manual_seed(0))]


def decode(results: Sequence[tuple[Tensor, Tensor]], count: int) -> Tensor | None:
    """The slots in the result of an op, from its results on all :func:`numberings`; None if it mixes slots."""
    numbers = results[0][0].round().long() - 1
    if not numbers.numel() or numbers.min() < 0 or numbers.max() >= count:
        return None
    if any(not torch.allclose(result, values[numbers], rtol=1e-5) for result, values in results):
        return None
    for axis in range(numbers.dim()):
        first = numbers.narrow(axis, 0, 1)
        numbers = first if (numbers == first).all() else numbers
    return numbers


def components(count: int, edges: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The smallest member of each node's connected component."""
    label = torch.arange(count)
    if not edges:
        return label
    a, b = (torch.cat(ends) for ends in zip(*edges, strict=True))
    while True:
        low = torch.minimum(label[a], label[b])
        new = label.scatter_reduce(0, a, low, "amin").scatter_reduce(0, b, low, "amin")
        new = new[new]
        if torch.equal(new, label):
            return label
        label = new
