"""Kernels over whole rows, the innermost axis: layer normalization, softmax, and the range for quantization.

Sums are taken in sixteen parts, whatever the width of a register, so that every instruction set rounds alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from llvmlite import ir

from ....compiler.numerics.quantize import SMALLEST_SCALE
from ..codegen.code import F32, I32, Code, Value, i64, vector
from ..codegen.emit import Lanes, Scope
from ..codegen.expr import Expr
from ..codegen.functions import FUNCTIONS
from ..codegen.isa import Isa
from .axes import Axis, Tiles, count, moved, numbers_of
from .blocks import Block
from .epilogue import Epilogue, Store
from .operands import Element, OperandLoader, scalar_param

RowOperation = Literal["norm", "softmax", "range"]

PARTS = 16
Reader = Callable[[Value, int, Value | int], Value]  # chunk, part, how many of its lanes are valid -> the part
SMALLEST = -87.0  # exp() of less is no normal number
LOWEST = -3.4028234663852886e38  # of fp32: masks hold it, and a row of it alone is uniform


@dataclass(frozen=True)
class Rows:
    """The tensors of an axis are output, operands of the output, operands of the input.

    Attributes:
        kind: what is computed of a row. A range is three numbers: 1 / scale, zero point and scale.
        outer: all axes but the innermost.
        size: of the innermost axis. A softmax reads it at run time: only its next power of two is in the code.
        epsilon: what is added to a variance; the least sum of a softmax.
        source: what a row holds.
        inputs: how its operands lie along the row.
        epilogue: what is stored; its sum is the normalized value. A range is stored as it is.
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
        return (
            f"Rows({self.kind}, {self.outer}, {size}, {self.epsilon}, {self.source}, {self.inputs}, {self.epilogue}, "
            f"{self.isa})"
        )

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
        self.kind = vector(F32, self.isa.lanes)
        self.parts = PARTS // self.isa.lanes
        self.size: Value | int = code.number(len(numbers_of(rows.outer))) if rows.free else rows.size
        self.row = code.array(F32, rows.capacity)

    def emit(self) -> str:
        r, c = self.r, self.c
        tiles = Tiles(c, r.outer)
        with c.loop(c.low, c.high) as item:
            at, _ = tiles.locate(item, self.tensors)
            own, inputs = at[: 1 + len(r.epilogue.operands)], at[1 + len(r.epilogue.operands) :]
            if r.kind == "range":
                self._range(inputs, own[0])
            else:
                (self._norm if r.kind == "norm" else self._softmax)(inputs)
                self._store(own)
        return c.finish()

    def _range(self, inputs: list[Value], target: Value) -> None:
        """Affine parameters of 8 bits for the range of a row, which includes zero. The scale of no range is NaN."""
        m, c = self.m, self.c
        high = self._reduced("max", 0.0, partial(self._read, inputs), 0.0)
        low = self._reduced("min", 0.0, lambda chunk, part, _: self._held(chunk, part), 0.0)

        def unlike_itself(chunk: Value, part: int, valid: Value | int) -> Value:
            return m.sub(self._held(chunk, part), self._held(chunk, part))

        poison = self._reduced("add", 0.0, unlike_itself, 0.0)
        scale = m.mul(m.sub(high, low), m.const(1.0 / 255))
        usable = c.b.fcmp_ordered(">", scale, m.const(SMALLEST_SCALE))
        scale = c.b.select(usable, scale, m.const(1.0))
        factor = m.div(m.const(1.0), scale)
        zero = m.min(m.rint(m.mul(m.sub(m.const(0.0), low), factor)), m.const(255.0))
        for place, value in enumerate((factor, zero, m.add(scale, poison))):
            c.store(c.b.extract_element(value, ir.Constant(I32, 0)), c.at(target, 4 * place))

    def _norm(self, inputs: list[Value]) -> None:
        """(x - mean) / sqrt(variance + epsilon)."""
        m, share = self.m, self.m.const(1.0 / self.r.size)
        mean = m.mul(self._reduced("add", 0.0, partial(self._read, inputs), 0.0), share)

        def square(chunk: Value, part: int, valid: Value | int) -> Value:
            off = m.sub(self._held(chunk, part), mean)
            self._hold(off, chunk, part)
            return m.mul(off, off)

        variance = m.mul(self._reduced("add", 0.0, square, 0.0), share)
        root = self.c.intrinsic(
            f"llvm.sqrt.v{self.isa.lanes}f32", self.kind, (m.add(variance, m.const(self.r.epsilon)),)
        )
        self._scale(m.div(m.const(1.0), root))

    def _softmax(self, inputs: list[Value]) -> None:
        """exp(x - max) / sum."""
        m = self.m
        largest = self._reduced("max", LOWEST, partial(self._read, inputs), LOWEST)

        def power(chunk: Value, part: int, valid: Value | int) -> Value:
            below = m.sub(self._held(chunk, part), largest)
            value = FUNCTIONS["exp"](m, below)
            # exp() ends at the smallest number, but what a mask leaves out must count as nothing.
            value = self.c.b.select(self.c.b.fcmp_ordered("<", below, m.const(SMALLEST)), m.const(0.0), value)
            self._hold(value, chunk, part)
            return value

        total = m.max(m.const(self.r.epsilon), self._reduced("add", 0.0, power, 0.0))
        self._scale(m.div(m.const(1.0), total))

    def _scale(self, factor: Value) -> None:
        def scale(chunk: Value, valid: Value | int) -> None:
            for part in range(self.parts):
                self._hold(self.m.mul(self._held(chunk, part), factor), chunk, part)

        self._pieces(PARTS, scale)

    def _pieces(self, width: int, emit: Callable[[Value, Value | int], None]) -> None:
        """Emit what is done with each piece of a row, and with the rest, which has fewer elements."""
        c = self.c
        if isinstance(self.size, int):
            whole, rest = divmod(self.size, width)
            if whole:
                with c.loop(0, whole) as index:
                    emit(index, width)
            if rest:
                emit(i64(whole), rest)
            return
        pieces, left = c.divide(self.size, width)
        with c.loop(0, pieces) as index:
            emit(index, width)
        with c.b.if_then(c.b.icmp_signed(">", left, i64(0))):
            emit(pieces, left)

    def _reduced(self, op: str, start: float, of: Reader, outside: float) -> Value:
        """The sum or maximum over a row, in all lanes.

        Args:
            of: gives a part of a row, of which some lanes are valid.
            outside: stands for what is past the end.
        """
        c, m, lanes = self.c, self.m, self.isa.lanes
        combine = getattr(m, op)
        totals = [c.variable(self.kind, m.const(start)) for _ in range(self.parts)]

        def step(chunk: Value, valid: Value | int) -> None:
            for part in range(self.parts):
                value = self._inside(of, chunk, part, valid, m.const(outside))
                c.b.store(combine(c.b.load(totals[part]), value), totals[part])

        self._pieces(PARTS, step)
        values = [c.b.load(t) for t in totals]
        width = PARTS  # halves are combined until one lane is left
        while len(values) > 1:
            half = len(values) // 2
            values = [combine(a, b) for a, b in zip(values[:half], values[half:], strict=True)]
            width //= 2
        value = values[0]
        while width > 1:
            width //= 2
            value = combine(value, c.take(value, [(i + width) % lanes for i in range(lanes)]))
        return c.take(value, [0] * lanes)

    def _inside(self, of: Reader, chunk: Value, part: int, valid: Value | int, outside: Value) -> Value:
        """A part of a chunk, with ``outside`` in the lanes after those that are valid."""
        c, lanes = self.c, self.isa.lanes
        if not isinstance(valid, int):
            left = c.b.sub(valid, i64(part * lanes))
            return c.b.select(c.first_lanes(left, lanes), of(chunk, part, left), outside)
        inside = max(0, min(lanes, valid - part * lanes))
        value = of(chunk, part, inside) if inside else outside
        return c.shuffle(value, outside, [i if i < inside else lanes + i for i in range(lanes)])

    def _read(self, inputs: list[Value], chunk: Value, part: int, valid: Value | int) -> Value:
        """Compute a part of the row from the operands, and hold it."""
        c, lanes = self.c, self.isa.lanes
        first = c.b.add(c.times(chunk, PARTS), i64(part * lanes))
        at = moved(c, inputs, first, [e.step for e in self.r.inputs])
        loaders = [OperandLoader(c, self.isa, e, p, 1, valid) for e, p in zip(self.r.inputs, at, strict=True)]

        param = partial(scalar_param, c, self.isa, self.input_scalars)
        value = Scope(c, self.isa, lambda i: loaders[i].vector(0), param).value(self.r.source)
        self._hold(value, chunk, part)
        return value

    def _place(self, chunk: Value, part: int) -> Value:
        return self.c.at(self.row, self.c.b.add(self.c.times(chunk, 4 * PARTS), i64(4 * part * self.isa.lanes)))

    def _held(self, chunk: Value, part: int) -> Value:
        return self.c.load(self._place(chunk, part), self.kind)

    def _hold(self, value: Value, chunk: Value, part: int) -> None:
        self.c.store(value, self._place(chunk, part))

    def _store(self, pointers: list[Value]) -> None:
        """The output of a row, from what is held."""
        c, lanes, block = self.c, self.isa.lanes, self.r.block

        def register(index: Value, valid: Value | int) -> None:
            first = c.times(index, lanes)
            at = moved(c, pointers, first, [e.step for e in self.r.epilogue.elements])
            total = c.load(c.at(self.row, c.times(first, 4)), self.kind)
            params = c.at(self.params, c.times(first, 4))
            store = Store(c, self.isa, self.r.epilogue, params, self.scalars, 4 * lanes * block.vectors)
            if isinstance(valid, int):
                store.block([total], at, Block(1, valid))
            else:
                store.block([total], at, Block(1, lanes), valid)

        self._pieces(lanes, register)
