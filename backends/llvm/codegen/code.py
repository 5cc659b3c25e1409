"""Writing LLVM IR: a function, loops, and vectors in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from typing import Any

from llvmlite import ir

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()
PTR = ir.PointerType()

Value = Any  # an ir.Value


def vector(element: Any, lanes: int) -> Any:
    """The type of a vector."""
    return ir.VectorType(element, lanes)


def i64(value: int) -> Any:
    return ir.Constant(I64, value)


class _Constant(ir.Constant):
    """A constant whose text is made once: kernels have thousands of references to a few of them."""

    @cached_property
    def _text(self) -> str:
        return super().get_reference()

    def get_reference(self) -> str:
        return self._text


@cache
def splat(value: float, element: Any, lanes: int) -> Any:
    """A constant vector with one value in every lane."""
    return _Constant(vector(element, lanes), [value] * lanes)


@cache
def _mask(lanes: tuple[int, ...]) -> Any:
    return _Constant(vector(I32, len(lanes)), list(lanes))


class Code:
    """A kernel under construction: ``void name(ptr args, i64 low, i64 high)``.

    ``args`` points to an array of pointers; ``low`` and ``high`` are the first item of work and the one after the last.
    The word before the array points to the numbers that the kernel reads at run time.
    """

    def __init__(self, name: str) -> None:
        self.module = ir.Module(name)
        self.function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), (PTR, I64, I64)), name)
        self.function.attributes.add("nounwind")
        self.b = ir.IRBuilder(self.function.append_basic_block("entry"))
        self._entry = self.b.block
        args, self.low, self.high = self.function.args
        self._args = args

    def pointer(self, index: int) -> Value:
        """The argument ``index``. Every kernel reads its arguments at its start."""
        return self.b.load(self.b.gep(self._args, [i64(8 * index)], source_etype=I8), typ=PTR)

    def number(self, index: int) -> Value:
        """The number ``index``, which is read at the start."""
        with self.b.goto_block(self._entry), self.b.goto_entry_block():
            numbers = self.b.load(self.b.gep(self._args, [i64(-8)], source_etype=I8), typ=PTR)
            return self.b.load(self.b.gep(numbers, [i64(8 * index)], source_etype=I8), typ=I64)

    def finish(self) -> str:
        """The IR as text."""
        self.b.ret_void()
        return str(self.module)

    def intrinsic(self, name: str, result: Any, values: Sequence[Value]) -> Value:
        """Call the intrinsic ``name``."""
        known = self.module.globals.get(name)
        if known is None:
            known = ir.Function(self.module, ir.FunctionType(result, [v.type for v in values]), name)
        return self.b.call(known, values)

    def variable(self, kind: Any, value: Value) -> Value:
        """A variable, which LLVM keeps in a register."""
        with self.b.goto_block(self._entry), self.b.goto_entry_block():
            slot = self.b.alloca(kind)
        self.b.store(value, slot)
        return slot

    def array(self, element: Any, count: int) -> Value:
        """Memory of the thread, as long as the kernel runs."""
        with self.b.goto_block(self._entry), self.b.goto_entry_block():
            slot = self.b.alloca(ir.ArrayType(element, count))
        slot.type = PTR  # llvmlite would say what it points to, as LLVM no longer does
        return slot

    @contextmanager
    def loop(self, start: Value | int, stop: Value | int, step: int = 1) -> Iterator[Value]:
        """Count from ``start`` to ``stop``; the body of the ``with`` is the body of the loop."""
        b = self.b
        first, last = (i64(v) if isinstance(v, int) else v for v in (start, stop))
        head, body, done = (self.function.append_basic_block(part) for part in ("head", "body", "done"))
        before = b.block
        b.branch(head)
        b.position_at_end(head)
        index = b.phi(I64)
        index.add_incoming(first, before)
        b.cbranch(b.icmp_signed("<", index, last), body, done)
        b.position_at_end(body)
        yield index
        index.add_incoming(b.add(index, i64(step)), b.block)
        b.branch(head)
        b.position_at_end(done)

    def at(self, pointer: Value, offset: Value | int) -> Value:
        """``pointer`` plus ``offset`` bytes."""
        if isinstance(offset, int):
            if offset == 0:
                return pointer
            offset = i64(offset)
        return self.b.gep(pointer, [offset], source_etype=I8)

    def times(self, value: Value, factor: Value | int) -> Value:
        if isinstance(factor, int):
            return value if factor == 1 else self.b.mul(value, i64(factor))
        return self.b.mul(value, factor)

    def product(self, a: Value | int, b: Value | int) -> Value | int:
        """Of constants, or of values; at the start, where both are known."""
        if isinstance(a, int) and isinstance(b, int):
            return a * b
        a, b = (i64(n) if isinstance(n, int) else n for n in (a, b))
        return self.b.mul(a, b)

    def smaller(self, a: Value, b: Value | int) -> Value:
        b = i64(b) if isinstance(b, int) else b
        return self.b.select(self.b.icmp_signed("<", a, b), a, b)

    def divide(self, value: Value, divisor: Value | int) -> tuple[Value, Value]:
        """Quotient and rest of a number that is not negative."""
        if divisor == 1:
            return value, i64(0)
        divisor = i64(divisor) if isinstance(divisor, int) else divisor
        return self.b.udiv(value, divisor), self.b.urem(value, divisor)

    def load(self, pointer: Value, kind: Any) -> Value:
        """Load from any address."""
        return self.b.load(pointer, typ=kind, align=1)

    def store(self, value: Value, pointer: Value) -> None:
        """Store to any address."""
        self.b.store(value, pointer, align=1)

    def first_lanes(self, count: Value, lanes: int) -> Value:
        """A mask of the first lanes, as many as the run tells."""
        numbers = _Constant(vector(I64, lanes), list(range(lanes)))
        return self.b.icmp_signed("<", numbers, self.repeat(count, lanes))

    def load_first(self, pointer: Value, kind: Any, count: Value) -> Value:
        """Load the first ``count`` lanes of an fp32 vector; the others are zero."""
        name = f"llvm.masked.load.v{kind.count}f32.p0"
        values = (pointer, ir.Constant(I32, 1), self.first_lanes(count, kind.count), ir.Constant(kind, None))
        return self.intrinsic(name, kind, values)

    def store_first(self, value: Value, pointer: Value, count: Value | int) -> None:
        """Store the first ``count`` lanes of a vector, in pieces of powers of two; fp32 if the run tells how many."""
        lanes, size = value.type.count, _size(value.type.element)
        if not isinstance(count, int):
            values = (value, pointer, ir.Constant(I32, 1), self.first_lanes(count, lanes))
            self.intrinsic(f"llvm.masked.store.v{lanes}f32.p0", ir.VoidType(), values)
            return
        start = 0
        for width in (64, 32, 16, 8, 4, 2, 1):
            while width <= count - start:
                piece = self.take(value, range(start, start + width)) if width < lanes else value
                self.store(piece, self.at(pointer, start * size))
                start += width

    def take(self, value: Value, lanes: Sequence[int]) -> Value:
        """Some lanes of a vector, in a new order."""
        return self.b.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), _mask(tuple(lanes)))

    def shuffle(self, first: Value, second: Value, lanes: Sequence[int]) -> Value:
        """Lanes of two vectors, counted through both."""
        return self.b.shuffle_vector(first, second, _mask(tuple(lanes)))

    def repeat(self, scalar: Value, lanes: int) -> Value:
        """A vector with ``scalar`` in every lane."""
        kind = vector(scalar.type, lanes)
        one = self.b.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(I32, 0))
        return self.take(one, [0] * lanes)


def _size(element: Any) -> int:
    return 4 if element is F32 else element.width // 8
