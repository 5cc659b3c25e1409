"""From planes to pixels: an expression whose output has few channels, contiguous, and whose operands have planes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from ..codegen.code import Code, Value
from ..codegen.emit import Scope
from ..codegen.isa import Isa
from .axes import Axis, Tiles, count, numbers_of
from .epilogue import Epilogue, stored
from .operands import OperandLoader, scalar_param

MOST_CHANNELS = 8


@dataclass(frozen=True)
class Interleave:
    """Lanes are pixels; the channels of a pixel are stored together. The tensors of an axis are output, operands.

    Attributes:
        outer: the axes but pixels and channels.
        pixels: how many are contiguous in every tensor.
        channels: the innermost axis of the output.
        epilogue: what is computed; its operands lie along the pixels.
    """

    outer: tuple[Axis, ...]
    pixels: int
    channels: Axis
    epilogue: Epilogue
    isa: Isa

    @property
    def axes(self) -> tuple[Axis, ...]:
        moves = (self.channels.moves[0] * self.channels.size, *(e.step for e in self.epilogue.operands))
        return *self.outer, Axis(self.pixels, moves, min(self.pixels, self.isa.lanes))

    @property
    def items(self) -> int:
        return count(self.axes)

    @property
    def numbers(self) -> tuple[int, ...]:
        """What is read at run time."""
        return numbers_of(self.axes)

    def emit(self, name: str) -> str:
        """The kernel as IR. Arguments: output, operands, scalars."""
        c = Code(name)
        tensors = [c.pointer(i) for i in range(1 + len(self.epilogue.operands))]
        scalars = c.pointer(len(tensors))
        tiles = Tiles(c, self.axes)
        with c.loop(c.low, c.high) as item:
            (target, *operands), _ = tiles.locate(item, tensors)
            parts = [self._channel(c, channel, operands, scalars) for channel in range(self.channels.size)]
            valid = min(self.pixels, self.isa.lanes) * self.channels.size
            c.store_first(self._interleaved(c, parts), target, valid)
        return c.finish()

    def _channel(self, c: Code, channel: int, operands: list[Value], scalars: Value) -> Value:
        """The stored elements of one channel, one for each pixel."""
        valid = min(self.pixels, self.isa.lanes)
        moves = self.channels.moves[1:]
        loaders = [
            OperandLoader(c, self.isa, e, c.at(p, channel * move), 1, valid)
            for e, p, move in zip(self.epilogue.operands, operands, moves, strict=True)
        ]

        param = partial(scalar_param, c, self.isa, scalars)
        return stored([Scope(c, self.isa, lambda i: loaders[i].vector(0), param)], self.epilogue.output)

    def _interleaved(self, c: Code, parts: list[Value]) -> Value:
        """The parts as one vector, a lane of each in turns."""
        lanes, channels = self.isa.lanes, len(parts)
        joined = parts[0]
        for number, part in enumerate(parts[1:], 1):
            wide = c.take(part, [*range(lanes), *[0] * (lanes * (number - 1))]) if number > 1 else part
            joined = c.shuffle(joined, wide, range((number + 1) * lanes))
        return c.take(joined, [lanes * channel + pixel for pixel in range(lanes) for channel in range(channels)])
