"""Where the tensors of a plan lie: in the arena, and in the constants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..runtime.native import ALIGNMENT, aligned_bytes
from .arena import Need, lower_bound, place
from .loops import spans
from .steps import AnyStep, FillStep
from .storage import Storage


def written(step: AnyStep) -> Storage | None:
    """The memory that a step writes."""
    if isinstance(step, FillStep):
        return step.storage.root
    return step.target.storage.root if step.target is not None else None


@dataclass(eq=False)
class Memory:
    """Where each tensor of a plan lies.

    Attributes:
        offsets: of the storages in the arena.
        arena_bytes: size of the arena.
        least_bytes: the least that any placement could need.
    """

    offsets: dict[Storage, int]
    arena_bytes: int
    least_bytes: int

    @staticmethod
    def of(steps: Sequence[AnyStep]) -> Memory:
        first: dict[Storage, int] = {}
        last: dict[Storage, int] = {}
        for index, step in enumerate(steps):
            storages = [v.storage.root for v in step.reads] if not isinstance(step, FillStep) else []
            target = written(step)
            for storage in (*storages, *([target] if target is not None else [])):
                if storage.place == "arena":
                    first.setdefault(storage, index)
                    last[storage] = index
        for begin, end in spans(steps):
            for storage in first:
                # What a round reads of before, and what is read after the last one, lives in all rounds.
                if first[storage] < begin <= last[storage] < end:
                    last[storage] = end - 1
                elif begin <= first[storage] < end <= last[storage]:
                    first[storage] = begin
        needs = {s: Need(s.bytes, first[s], last[s]) for s in first}
        offsets, size = place(list(needs.values()))
        return Memory(dict(zip(needs, offsets, strict=True)), size, lower_bound(list(needs.values())))

    def overlap(self, a: Storage, b: Storage) -> bool:
        """Whether two storages share memory."""
        if a is b:
            return True
        if a.place != "arena" or b.place != "arena":
            return False
        start, other = self.offsets[a], self.offsets[b]
        return start < other + b.bytes and other < start + a.bytes


def with_fills(steps: Sequence[AnyStep]) -> list[AnyStep]:
    """The steps, with one that fills the halo before the first that writes a tensor with a halo."""
    found: list[AnyStep] = []
    seen: set[Storage] = set()
    for step in steps:
        target = written(step)
        if target is not None and target not in seen:
            seen.add(target)
            if any(any(sides) for sides in target.halo.values()):
                found.append(FillStep(target))
        found.append(step)
    return found


class Constants:
    """Weights and parameters, one after the other."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._offsets: dict[int, int] = {}
        self.size = 0

    def add(self, tensor: Tensor) -> int:
        """The offset of a tensor."""
        if id(tensor) not in self._offsets:
            self._offsets[id(tensor)] = self.size
            self._parts.append(tensor)
            self.size += -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT
        return self._offsets[id(tensor)]

    def joined(self) -> Tensor:
        memory = aligned_bytes(self.size)
        for part in self._parts:
            start = self._offsets[id(part)]
            raw = part.contiguous().view(-1).view(torch.uint8)
            memory[start : start + raw.numel()] = raw
        return memory
