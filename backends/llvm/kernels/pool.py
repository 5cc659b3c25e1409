"""Pools over windows, channels in lanes."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from llvmlite import ir

from ..codegen.code import F32, I8, I16, I32, Code, Value, i64, splat, vector
from ..codegen.emit import zeros
from ..codegen.expr import Kind
from ..codegen.isa import Isa
from .axes import Axis, Tiles, count, numbers_of
from .blocks import Block
from .epilogue import Epilogue, Store
from .operands import BYTES


@dataclass(frozen=True)
class SumPool:
    """Sums over a window. The tensors of an axis are input, output, operands.

    Attributes:
        outer: all axes of the output but the channels.
        window: nested loops: (count, bytes from one to the next in the input).
        channels: how many.
        kind: what an element of the input is.
        vectors: registers of channels that are summed at once; more than one for u8 in and out alone.
        epilogue: what is stored.
    """

    outer: tuple[Axis, ...]
    window: tuple[tuple[int, int], ...]
    channels: int
    kind: Kind
    vectors: int
    epilogue: Epilogue
    isa: Isa

    @property
    def block(self) -> Block:
        return Block(self.vectors, min(self.channels, self.vectors * self.isa.lanes))

    @property
    def axes(self) -> tuple[Axis, ...]:
        moves = (BYTES[self.kind], *(e.step for e in self.epilogue.elements))
        return *self.outer, Axis(self.channels, moves, self.block.valid)

    @property
    def items(self) -> int:
        return count(self.axes)

    @property
    def numbers(self) -> tuple[int, ...]:
        """What is read at run time."""
        return numbers_of(self.axes)

    def emit(self, name: str) -> str:
        """The kernel as IR. Arguments: input, output, operands, scalars."""
        c, isa = Code(name), self.isa
        tensors = [c.pointer(i) for i in range(2 + len(self.epilogue.operands))]
        store = Store(c, isa, self.epilogue, c.pointer(0), c.pointer(len(tensors)))
        floats = self.kind == "f32"
        kind = vector(F32 if floats else I32, isa.lanes)
        zero = ir.Constant(kind, None) if floats else zeros(isa)
        tiles = Tiles(c, self.axes)
        with c.loop(c.low, c.high) as item:
            at, _ = tiles.locate(item, tensors)
            sums = [c.variable(kind, zero) for _ in range(self.vectors)]
            with ExitStack() as loops:
                source = at[0]
                for size, move in self.window:
                    source = c.at(source, c.times(loops.enter_context(c.loop(0, size)), move))
                if floats:
                    parts = [c.load(c.at(source, 4 * isa.lanes * v), kind) for v in range(self.vectors)]
                elif self.kind == "s16":
                    words = (
                        c.load(c.at(source, 2 * isa.lanes * v), vector(I16, isa.lanes)) for v in range(self.vectors)
                    )
                    parts = [c.b.sext(w, kind) for w in words]
                else:
                    packed = c.load(source, vector(I8, isa.lanes * self.vectors))
                    parts = [
                        part
                        for first, together in self.epilogue.groups(self.block)
                        for part in isa.unpack(
                            c, c.take(packed, range(first * isa.lanes, (first + together) * isa.lanes)), together
                        )
                    ]
                for slot, part in zip(sums, parts, strict=True):
                    add = c.b.fadd if floats else c.b.add
                    c.b.store(add(c.b.load(slot), part), slot)
            store.block([c.b.load(s) for s in sums], at[1:], self.block)
        return c.finish()


@dataclass(frozen=True)
class MaxPool:
    """The largest of a window. The tensors of an axis are input, output; the input does not move along the window.

    Padding is left out: an index outside of the input is moved to its border, which is in the window, too.

    Attributes:
        outer: axes of the output without a window.
        windows: the axes of the window.
        channels: how many.
        kind: what an element is.
    """

    outer: tuple[Axis, ...]
    windows: tuple[Window, ...]
    channels: int
    kind: Kind
    isa: Isa

    @property
    def block(self) -> int:
        """Channels that are computed at once."""
        most = self.isa.lanes * (4 if self.kind == "u8" else 1)
        return next((n for n in (most, most // 2, most // 4) if n <= self.channels), self.channels)

    @property
    def axes(self) -> tuple[Axis, ...]:
        outputs = (Axis(w.outputs, (0, w.target)) for w in self.windows)
        size = BYTES[self.kind]
        return *self.outer, *outputs, Axis(self.channels, (size, size), self.block)

    @property
    def items(self) -> int:
        return count(self.axes)

    @property
    def numbers(self) -> tuple[int, ...]:
        """What is read at run time."""
        return numbers_of(self.axes)

    def emit(self, name: str) -> str:
        """The kernel as IR. Arguments: input, output."""
        c = Code(name)
        tensors = [c.pointer(0), c.pointer(1)]
        lanes = max(self.block, self.isa.lanes)
        element, least = {"f32": (F32, float("-inf")), "s16": (I16, -32768), "u8": (I8, 0)}[self.kind]
        kind, lowest = vector(element, lanes), splat(least, element, lanes)
        tiles = Tiles(c, self.axes)
        with c.loop(c.low, c.high) as item:
            (source, target), indices = tiles.locate(item, tensors)
            outputs = indices[len(self.outer) : -1]
            best = c.variable(kind, lowest)
            with ExitStack() as loops:
                for window, output in zip(self.windows, outputs, strict=True):
                    tap = loops.enter_context(c.loop(0, window.size))
                    source = c.at(source, c.times(window.place(c, output, tap), window.source))
                value = c.load(source, kind)
                known = c.b.load(best)
                c.b.store(c.b.select(self._larger(c, value, known), value, known), best)
            c.store_first(c.b.load(best), target, self.block)
        return c.finish()

    def _larger(self, c: Code, value: Value, known: Value) -> Value:
        """Whether ``value`` takes the place of ``known``; NaN takes that of any number."""
        if self.kind != "f32":
            return (c.b.icmp_signed if self.kind == "s16" else c.b.icmp_unsigned)(">", value, known)
        return c.b.or_(c.b.fcmp_ordered(">", value, known), c.b.fcmp_unordered("uno", value, value))


@dataclass(frozen=True)
class Window:
    """One axis of a window of :class:`MaxPool`."""

    outputs: int
    target: int
    inputs: int
    source: int
    size: int
    stride: int
    padding: int

    def place(self, c: Code, output: Value, tap: Value) -> Value:
        """The input index of a tap, moved into the input."""
        place = c.b.sub(c.b.add(c.times(output, self.stride), tap), i64(self.padding))
        if self.padding:
            place = c.b.select(c.b.icmp_signed("<", place, i64(0)), i64(0), place)
        if (self.outputs - 1) * self.stride + self.size - self.padding > self.inputs:
            last = i64(self.inputs - 1)
            place = c.b.select(c.b.icmp_signed(">", place, last), last, place)
        return place
