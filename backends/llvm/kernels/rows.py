"""Kernels over whole rows, the innermost axis: layer normalization, softmax, and the range for quantization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from llvmlite import ir

from ....compiler.numerics.quantize import SMALLEST_SCALE
from ..codegen.code import I32, Code, Value, i64
from ..codegen.emit import Lanes, Scope
from ..codegen.expr import Expr
from ..codegen.functions import FUNCTIONS
from ..codegen.isa import Isa
from .axes import Axis, Tiles, count, moved, numbers_of
from .blocks import Block
from .epilogue import Epilogue, Store
from .held_row import PARTS, HeldRow
from .operands import Element, OperandLoader, scalar_param

RowOperation = Literal["norm", "softmax", "range", "extremes"]

SMALLEST = -87.0  # exp() of less is no normal number
LOWEST = -3.4028234663852886e38  # of fp32: masks hold it, and a row of it alone is uniform


@dataclass(frozen=True)
class Rows:
    """The tensors of an axis are output, operands of the output, operands of the input.

    Attributes:
        kind: what is computed of a row. A range is three numbers: 1 / scale, zero point and scale. Extremes are two:
            the largest and the least element, zero included.
        outer: all axes but the innermost.
        size: of the innermost axis. A softmax reads it at run time: only its next power of two is in the code.
        epsilon: what is added to a variance; the least sum of a softmax.
        source: what a row holds.
        inputs: how its operands lie along the row.
        epilogue: what is stored; its sum is the normalized value. Ranges and extremes are stored as they are.
    """

    kind: RowOperation
    outer: tuple[Axis, ...]
    size: int
    epsilon: float
    source: Expr
    inputs: tuple[Element, ...]
    epilogue: Epilogue
    isa: Isa

    def __repr__(self) -> str:
        """What the code depends on."""
        size = f"free, {self.capacity}" if self.free else str(self.size)
        others = self.outer, self.epsilon, self.source, self.inputs, self.epilogue, self.isa
        return f"Rows({self.kind}, {size}, {others})"

    @property
    def free(self) -> bool:
        """Whether the size is read at run time."""
        return self.kind == "softmax" and not self.epilogue.params and self.epilogue.output.kind == "f32"

    @property
    def capacity(self) -> int:
        """Elements of a row that the kernel has memory for."""
        least = max(self.size, PARTS)
        return 1 << (least - 1).bit_length() if self.free else -(-least // PARTS) * PARTS

    @property
    def block(self) -> Block:
        """The row, as one block of channels."""
        return Block(-(-self.size // self.isa.lanes), self.size)

    @property
    def items(self) -> int:
        return count(self.outer)

    @property
    def numbers(self) -> tuple[int, ...]:
        """What is read at run time."""
        return *numbers_of(self.outer), *((self.size,) if self.free else ())

    def emit(self, name: str) -> str:
        """The kernel as IR.

        Arguments: output, its operands, input operands, parameters per channel, scalars of the output, of the input.
        """
        return _Emitter(self, Code(name)).emit()


class _Emitter:
    def __init__(self, rows: Rows, code: Code) -> None:
        self.r, self.c, self.isa = rows, code, rows.isa
        tensors = 1 + len(rows.epilogue.operands) + len(rows.inputs)
        self.tensors = [code.pointer(i) for i in range(tensors)]
        self.params, self.scalars, self.input_scalars = (code.pointer(tensors + i) for i in range(3))
        self.m = Lanes(code, rows.isa)
        size: Value | int = code.number(len(numbers_of(rows.outer))) if rows.free else rows.size
        self.row = HeldRow(code, rows.isa, size, rows.capacity)

    def emit(self) -> str:
        r, c = self.r, self.c
        tiles = Tiles(c, r.outer)
        with c.loop(c.low, c.high) as item:
            at, _ = tiles.locate(item, self.tensors)
            own, inputs = at[: 1 + len(r.epilogue.operands)], at[1 + len(r.epilogue.operands) :]
            if r.kind in ("range", "extremes"):
                (self._range if r.kind == "range" else self._extremes)(inputs, own[0])
            else:
                (self._norm if r.kind == "norm" else self._softmax)(inputs)
                self._store(own)
        return c.finish()

    def _range(self, inputs: list[Value], target: Value) -> None:
        """Affine parameters of 8 bits for the range of a row, which includes zero. The scale of no range is NaN."""
        m, c = self.m, self.c
        high, low, poison = self._bounds(inputs)
        scale = m.mul(m.sub(high, low), m.const(1.0 / 255))
        usable = c.b.fcmp_ordered(">", scale, m.const(SMALLEST_SCALE))
        scale = c.b.select(usable, scale, m.const(1.0))
        factor = m.div(m.const(1.0), scale)
        zero = m.min(m.rint(m.mul(m.sub(m.const(0.0), low), factor)), m.const(255.0))
        self._store_scalars((factor, zero, m.add(scale, poison)), target)

    def _extremes(self, inputs: list[Value], target: Value) -> None:
        """The bounds of a row; NaN if one of its elements is not finite."""
        high, low, poison = self._bounds(inputs)
        self._store_scalars((self.m.add(high, poison), self.m.add(low, poison)), target)

    def _store_scalars(self, values: Sequence[Value], target: Value) -> None:
        for place, value in enumerate(values):
            self.c.store(self.c.b.extract_element(value, ir.Constant(I32, 0)), self.c.at(target, 4 * place))

    def _bounds(self, inputs: list[Value]) -> tuple[Value, Value, Value]:
        """The largest and the least element of a row and zero; and zero, or NaN if an element is not finite."""
        m = self.m
        high = self.row.reduced("max", 0.0, partial(self._read, inputs), 0.0)
        low = self.row.reduced("min", 0.0, lambda piece, part, _: self.row.held(piece, part), 0.0)

        def unlike_itself(piece: Value, part: int, valid: Value | int) -> Value:
            return m.sub(self.row.held(piece, part), self.row.held(piece, part))

        return high, low, self.row.reduced("add", 0.0, unlike_itself, 0.0)

    def _norm(self, inputs: list[Value]) -> None:
        """(x - mean) / sqrt(variance + epsilon)."""
        m, share = self.m, self.m.const(1.0 / self.r.size)
        mean = m.mul(self.row.reduced("add", 0.0, partial(self._read, inputs), 0.0), share)

        def square(piece: Value, part: int, valid: Value | int) -> Value:
            off = m.sub(self.row.held(piece, part), mean)
            self.row.hold(off, piece, part)
            return m.mul(off, off)

        variance = m.mul(self.row.reduced("add", 0.0, square, 0.0), share)
        root = self.c.intrinsic(
            f"llvm.sqrt.v{self.isa.lanes}f32", self.row.kind, (m.add(variance, m.const(self.r.epsilon)),)
        )
        self.row.scale(m.div(m.const(1.0), root))

    def _softmax(self, inputs: list[Value]) -> None:
        """exp(x - max) / sum."""
        m = self.m
        largest = self.row.reduced("max", LOWEST, partial(self._read, inputs), LOWEST)

        def power(piece: Value, part: int, valid: Value | int) -> Value:
            below = m.sub(self.row.held(piece, part), largest)
            value = FUNCTIONS["exp"](m, below)
            # exp() ends at the smallest number, but what a mask leaves out must count as nothing.
            value = self.c.b.select(self.c.b.fcmp_ordered("<", below, m.const(SMALLEST)), m.const(0.0), value)
            self.row.hold(value, piece, part)
            return value

        total = m.max(m.const(self.r.epsilon), self.row.reduced("add", 0.0, power, 0.0))
        self.row.scale(m.div(m.const(1.0), total))

    def _read(self, inputs: list[Value], piece: Value, part: int, valid: Value | int) -> Value:
        """Compute a part of the row from the operands, and hold it."""
        c, lanes = self.c, self.isa.lanes
        first = c.b.add(c.times(piece, PARTS), i64(part * lanes))
        at = moved(c, inputs, first, [e.step for e in self.r.inputs])
        loaders = [OperandLoader(c, self.isa, e, p, 1, valid) for e, p in zip(self.r.inputs, at, strict=True)]

        param = partial(scalar_param, c, self.isa, self.input_scalars)
        value = Scope(c, self.isa, lambda i: loaders[i].vector(0), param).value(self.r.source)
        self.row.hold(value, piece, part)
        return value

    def _store(self, pointers: list[Value]) -> None:
        """The output of a row, from what is held."""
        c, lanes, block = self.c, self.isa.lanes, self.r.block

        def register(index: Value, valid: Value | int) -> None:
            first = c.times(index, lanes)
            at = moved(c, pointers, first, [e.step for e in self.r.epilogue.elements])
            total = c.load(c.at(self.row.memory, c.times(first, 4)), self.row.kind)
            params = c.at(self.params, c.times(first, 4))
            store = Store(c, self.isa, self.r.epilogue, params, self.scalars, 4 * lanes * block.vectors)
            if isinstance(valid, int):
                store.block([total], at, Block(1, valid))
            else:
                store.block([total], at, Block(1, lanes), valid)

        self.row.pieces(lanes, register)
