"""What a kernel does with its sums: compute the expression of the output, round, pack and store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..codegen.code import F32, Code, Value, vector
from ..codegen.emit import Scope
from ..codegen.expr import Output, Param
from ..codegen.isa import Isa
from .blocks import Block
from .operands import BYTES, Element, OperandLoader, pack_groups, scalar_param


@dataclass(frozen=True)
class Epilogue:
    """The output of a kernel.

    Attributes:
        output: what is stored.
        operands: how the tensors that it reads lie along the channels.
        params: number of parameters per channel.
    """

    output: Output
    operands: tuple[Element, ...] = ()
    params: int = 0

    @property
    def elements(self) -> tuple[Element, ...]:
        """How output and operands lie along the channels."""
        return Element(self.output.kind, BYTES[self.output.kind]), *self.operands

    @property
    def together(self) -> int:
        """Registers of channels that are packed together at most, in the order of ``Isa.channel_order``."""
        integers = all(e.step == 0 or (e.kind != "f32" and e.contiguous) for e in self.operands)
        return {"u8": 4, "s16": 2, "f32": 1}[self.output.kind] if integers else 1

    def groups(self, block: Block) -> list[tuple[int, int]]:
        """(first, count) of the registers of a block that are packed together."""
        return pack_groups(block.vectors, self.together)

    def lane_channels(self, block: Block, isa: Isa) -> list[int]:
        """The channel of each lane of a block; those from ``block.valid`` on are none."""
        return [
            first * isa.lanes + channel for first, count in self.groups(block) for channel in isa.channel_order(count)
        ]


def stored(scopes: Sequence[Scope], output: Output) -> Value:
    """The vector to store, of registers that are packed together."""
    code, isa = scopes[0].code, scopes[0].isa
    if output.kind == "f32":
        return scopes[0].value(output.value)
    if output.kind == "s16":
        return isa.pack_words(code, [s.integers(output) for s in scopes])
    return isa.pack(code, [s.integers(output) for s in scopes])


@dataclass
class Store:
    """Emits the epilogue of one block of channels of one element of the other axes.

    Attributes:
        params: parameters of the block, fp32 [params][lanes of the block].
        param_bytes: from one parameter to the next; 0: as many as the lanes of the block take.
        scalars: parameters that are one in all.
    """

    code: Code
    isa: Isa
    epilogue: Epilogue
    params: Value
    scalars: Value
    param_bytes: int = 0

    def block(
        self, totals: Sequence[Value] | None, pointers: Sequence[Value], block: Block, rest: Value | None = None
    ) -> None:
        """Compute and store. ``pointers`` are those of the output and of the operands at the first channel.

        Args:
            rest: the lanes of the last register that are valid, if only the run tells; for outputs of fp32.
        """
        c, lanes, output = self.code, self.isa.lanes, self.epilogue.output
        for first, count in self.epilogue.groups(block):
            width: int | Value = min(block.valid - first * lanes, count * lanes)
            if rest is not None and first == block.vectors - 1:
                width = rest
            at = [c.at(p, first * lanes * e.step) for p, e in zip(pointers, self.epilogue.elements, strict=True)]
            operands = [
                OperandLoader(c, self.isa, e, p, count, width)
                for e, p in zip(self.epilogue.operands, at[1:], strict=True)
            ]
            scopes = [
                self._scope(totals[first + v] if totals else None, first + v, block, operands, v) for v in range(count)
            ]
            c.store_first(stored(scopes, output), at[0], width)

    def _scope(self, total: Value | None, place: int, block: Block, operands: list[OperandLoader], v: int) -> Scope:
        c, lanes = self.code, self.isa.lanes

        def param(which: Param) -> Value:
            if which.per_channel:
                each = self.param_bytes or 4 * lanes * block.vectors
                return c.load(c.at(self.params, which.index * each + 4 * lanes * place), vector(F32, lanes))
            return scalar_param(c, self.isa, self.scalars, which)

        return Scope(c, self.isa, lambda i: operands[i].vector(v), param, total)
