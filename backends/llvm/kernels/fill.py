"""Filling the halo around a tensor."""

from __future__ import annotations

from dataclasses import dataclass

from ..codegen.code import F32, I8, I16, Code, Value, splat

ELEMENTS = {"u8": (I8, 1), "s16": (I16, 2), "f32": (F32, 4)}
BYTES = 64


@dataclass(frozen=True)
class FillHalo:
    """Fills what lies before and after each axis.

    Attributes:
        levels: axes from the outermost in memory: (elements before, size, elements after, bytes from one to the next).
        element: what an element is.
        value: what fills.
    """

    levels: tuple[tuple[int, int, int, int], ...]
    element: str
    value: int

    @property
    def items(self) -> int:
        return 1

    @property
    def numbers(self) -> tuple[int, ...]:
        """None."""
        return ()

    def emit(self, name: str) -> str:
        """The kernel as IR. Argument: the first byte of the memory."""
        c = Code(name)
        memory = c.pointer(0)
        with c.loop(c.low, c.high):
            self._fill(c, memory, 0)
        return c.finish()

    def _fill(self, c: Code, start: Value, level: int) -> None:
        before, size, after, move = self.levels[level]
        self._run(c, start, before * move)
        if any(low or high for low, _, high, _ in self.levels[level + 1 :]):
            with c.loop(0, size) as index:
                self._fill(c, c.at(c.at(start, before * move), c.times(index, move)), level + 1)
        self._run(c, c.at(start, (before + size) * move), after * move)

    def _run(self, c: Code, start: Value, length: int) -> None:
        """Fill ``length`` bytes."""
        kind, size = ELEMENTS[self.element]
        pattern = splat(self.value, kind, BYTES // size)
        whole = length - length % BYTES
        if whole:
            with c.loop(0, whole, BYTES) as index:
                c.store(pattern, c.at(start, index))
        if length % BYTES:
            c.store_first(pattern, c.at(start, whole), length % BYTES // size)
