"""Instruction sets: how a kernel multiplies, rounds and packs.

A kernel is written once, over the methods of :class:`Isa`. All instruction sets give the same integers: products are
exact, and fp32 is rounded in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from llvmlite import ir

from ..runtime.cpu import Cpu
from .code import F32, I8, I16, I32, Code, Value, splat, vector
from .expr import Kind


@dataclass(frozen=True)
class Isa:
    """Plain LLVM IR, which runs on any CPU.

    Attributes:
        name: of the instruction set.
        cpu: what LLVM compiles for.
        lanes: 32-bit lanes of a register.
        registers: how many there are.
        products: 8-bit products that one core does in a cycle, at its peak.
    """

    name: str
    cpu: Cpu
    lanes: int
    registers: int
    products: int

    def dot(self, c: Code, total: Value, a: Value, b: Value) -> Value:
        """``total`` plus, in each lane, the products of four u8 of ``a`` and four s8 of ``b``."""
        wide = vector(I32, 4 * self.lanes)
        quads = vector(I8, 4 * self.lanes)
        product = c.b.mul(c.b.zext(c.b.bitcast(a, quads), wide), c.b.sext(c.b.bitcast(b, quads), wide))
        for part in range(4):
            total = c.b.add(total, c.take(product, range(part, 4 * self.lanes, 4)))
        return total

    def dot_words(self, c: Code, total: Value, a: Value, b: Value) -> Value:
        """``total`` plus, in each lane, the products of two s16 of ``a`` and two s16 of ``b``."""
        wide = vector(I32, 2 * self.lanes)
        words = vector(I16, 2 * self.lanes)
        product = c.b.mul(c.b.sext(c.b.bitcast(a, words), wide), c.b.sext(c.b.bitcast(b, words), wide))
        for part in range(2):
            total = c.b.add(total, c.take(product, range(part, 2 * self.lanes, 2)))
        return total

    def dot_floats(self, c: Code, total: Value, a: Value, b: Value) -> Value:
        """``total`` plus, in each lane, the product of the fp32 numbers of ``a`` and ``b``, rounded once."""
        kind = vector(F32, self.lanes)
        a, b = c.b.bitcast(a, kind), c.b.bitcast(b, kind)
        return c.intrinsic(f"llvm.fma.v{self.lanes}f32", kind, (a, b, total))

    def dot_of(self, kind: Kind) -> Callable[[Code, Value, Value, Value], Value]:
        """The product of inputs of a kind."""
        return {"u8": self.dot, "s16": self.dot_words, "f32": self.dot_floats}[kind]

    def round(self, c: Code, x: Value) -> Value:
        """fp32 to int32, half to even. NaN gives a negative multiple of 2**30."""
        lanes = x.type.count
        limited = c.intrinsic(f"llvm.maxnum.v{lanes}f32", x.type, (x, splat(-(2.0**30), F32, lanes)))
        limited = c.intrinsic(f"llvm.minnum.v{lanes}f32", x.type, (limited, splat(2.0**30, F32, lanes)))
        even = c.intrinsic(f"llvm.rint.v{lanes}f32", x.type, (limited,))
        return c.b.fptosi(even, vector(I32, lanes))

    def pack(self, c: Code, vectors: Sequence[Value]) -> Value:
        """int32 vectors, in the order of :meth:`channel_order`, saturated to one vector of u8."""
        order = self.channel_order(len(vectors))
        joined = self._concat(c, [self._saturated(c, v) for v in vectors])
        place = [order.index(i) for i in range(len(order))]
        return c.take(joined, place)

    def pack_words(self, c: Code, vectors: Sequence[Value]) -> Value:
        """One or two int32 vectors, in the order of :meth:`channel_order`, saturated to one vector of s16."""
        order = self.channel_order(len(vectors))
        joined = self._concat(c, [self._words(c, v) for v in vectors])
        return c.take(joined, [order.index(i) for i in range(len(order))])

    def _words(self, c: Code, x: Value) -> Value:
        lanes = x.type.count
        x = c.intrinsic(f"llvm.smax.v{lanes}i32", x.type, (x, splat(-32768, I32, lanes)))
        x = c.intrinsic(f"llvm.smin.v{lanes}i32", x.type, (x, splat(32767, I32, lanes)))
        return c.b.trunc(x, vector(I16, lanes))

    def channel_order(self, count: int) -> list[int]:
        """The channel in each lane of ``count`` int32 vectors that are packed together."""
        return [4 * count * quad + 4 * v + i for v in range(count) for quad in range(self.lanes // 4) for i in range(4)]

    def unpack(self, c: Code, packed: Value, count: int) -> list[Value]:
        """A vector of u8 as ``count`` int32 vectors in the order of :meth:`channel_order`."""
        order, zero = self.channel_order(count), ir.Constant(packed.type, None)
        size = packed.type.count
        found = []
        for v in range(count):
            lanes = [i for channel in order[v * self.lanes : (v + 1) * self.lanes] for i in (channel, *[size] * 3)]
            found.append(c.b.bitcast(c.shuffle(packed, zero, lanes), vector(I32, self.lanes)))
        return found

    def interleave(self, c: Code, columns: Sequence[Value], count: int) -> list[Value]:
        """Four vectors of u8 as ``count`` int32 vectors, each lane with the four bytes of one place in them.

        The places are in the order of :meth:`channel_order`.
        """
        size = columns[0].type.count
        if count == 4:  # two rounds of unpacking, within 128 bits
            low, high = ([16 * q + i for q in range(size // 16) for i in half] for half in (range(8), range(8, 16)))
            words = []
            for part in (low, high):
                lanes = [k for i in part for k in (i, size + i)]
                words.append([c.shuffle(columns[a], columns[a + 1], lanes) for a in (0, 2)])
            quads = []
            for pair in words:
                first, second = (c.b.bitcast(v, vector(I16, size // 2)) for v in pair)
                for start in (0, 4):
                    places = [8 * q + start + i for q in range(size // 16) for i in range(4)]
                    lanes = [k for i in places for k in (i, size // 2 + i)]
                    quads.append(c.b.bitcast(c.shuffle(first, second, lanes), vector(I32, self.lanes)))
            return quads
        halves = [self._concat(c, columns[a : a + 2]) for a in (0, 2)]
        order = self.channel_order(count)
        quads = []
        for v in range(count):
            places = order[v * self.lanes : (v + 1) * self.lanes]
            lanes = [k for i in places for k in (i, size + i, 2 * size + i, 3 * size + i)]
            quads.append(c.b.bitcast(c.shuffle(halves[0], halves[1], lanes), vector(I32, self.lanes)))
        return quads

    def interleave_words(self, c: Code, columns: Sequence[Value], count: int) -> list[Value]:
        """The same for two vectors of s16."""
        size, order = columns[0].type.count, self.channel_order(count)
        found = []
        for v in range(count):
            lanes = [k for i in order[v * self.lanes : (v + 1) * self.lanes] for k in (i, size + i)]
            found.append(c.b.bitcast(c.shuffle(columns[0], columns[1], lanes), vector(I32, self.lanes)))
        return found

    def _saturated(self, c: Code, x: Value) -> Value:
        lanes = x.type.count
        x = c.intrinsic(f"llvm.smax.v{lanes}i32", x.type, (x, splat(0, I32, lanes)))
        x = c.intrinsic(f"llvm.smin.v{lanes}i32", x.type, (x, splat(255, I32, lanes)))
        return c.b.trunc(x, vector(I8, lanes))

    def _concat(self, c: Code, parts: Sequence[Value]) -> Value:
        joined = list(parts)
        while len(joined) > 1:
            lanes = joined[0].type.count
            joined = [c.shuffle(a, b, range(2 * lanes)) for a, b in zip(joined[::2], joined[1::2], strict=True)]
        return joined[0]


class Madd(Isa):
    """Exact products by ``vpmaddwd``: of bytes, on the even and on the odd ones.

    Attributes:
        MADD: the intrinsic.
    """

    MADD: ClassVar[str]

    def dot(self, c: Code, total: Value, a: Value, b: Value) -> Value:
        words = vector(I16, 2 * self.lanes)
        a, b, eight = c.b.bitcast(a, words), c.b.bitcast(b, words), splat(8, I16, 2 * self.lanes)
        even = self._madd(c, c.b.and_(a, splat(255, I16, 2 * self.lanes)), c.b.ashr(c.b.shl(b, eight), eight))
        return c.b.add(total, c.b.add(even, self._madd(c, c.b.lshr(a, eight), c.b.ashr(b, eight))))

    def dot_words(self, c: Code, total: Value, a: Value, b: Value) -> Value:
        return c.b.add(total, self._madd(c, a, b))

    def _madd(self, c: Code, a: Value, b: Value) -> Value:
        words = vector(I16, 2 * self.lanes)
        return c.intrinsic(self.MADD, vector(I32, self.lanes), (c.b.bitcast(a, words), c.b.bitcast(b, words)))


class Vnni(Isa):
    """Exact products by VNNI, in registers of any width."""

    def dot(self, c: Code, total: Value, a: Value, b: Value) -> Value:
        return self._dot(c, "vpdpbusd", I8, total, a, b)

    def dot_words(self, c: Code, total: Value, a: Value, b: Value) -> Value:
        return self._dot(c, "vpdpwssd", I16, total, a, b)

    def _dot(self, c: Code, instruction: str, element: Any, total: Value, a: Value, b: Value) -> Value:
        bits = 32 * self.lanes
        a, b = (c.b.bitcast(x, vector(element, bits // element.width)) for x in (a, b))
        return c.intrinsic(f"llvm.x86.avx512.{instruction}.{bits}", total.type, (total, a, b))


class Avx2(Madd):
    """AVX2."""

    MADD = "llvm.x86.avx2.pmadd.wd"

    def round(self, c: Code, x: Value) -> Value:
        return c.intrinsic("llvm.x86.avx.cvt.ps2dq.256", vector(I32, self.lanes), (x,))


class AvxVnni(Vnni, Avx2):
    """AVX2 with VNNI."""


class Avx512(Madd):
    """AVX512."""

    MADD = "llvm.x86.avx512.pmaddw.d.512"

    def round(self, c: Code, x: Value) -> Value:
        kind = vector(I32, self.lanes)
        mask, current = ir.Constant(I16, -1), ir.Constant(I32, 4)  # all lanes; the rounding mode of the CPU
        return c.intrinsic("llvm.x86.avx512.mask.cvtps2dq.512", kind, (x, splat(0, I32, 16), mask, current))

    def pack_words(self, c: Code, vectors: Sequence[Value]) -> Value:
        if len(vectors) == 1:
            return self._words(c, vectors[0])
        return c.intrinsic("llvm.x86.avx512.packssdw.512", vector(I16, 32), vectors)

    def pack(self, c: Code, vectors: Sequence[Value]) -> Value:
        words, bytes_ = vector(I16, 32), vector(I8, 64)
        if len(vectors) == 1:
            return self._saturated(c, vectors[0])
        pairs = [
            c.intrinsic("llvm.x86.avx512.packssdw.512", words, (a, b))
            for a, b in zip(vectors[::2], vectors[1::2], strict=True)
        ]
        if len(pairs) == 2:
            return c.intrinsic("llvm.x86.avx512.packuswb.512", bytes_, pairs)
        low = c.intrinsic("llvm.smax.v32i16", words, (pairs[0], splat(0, I16, 32)))
        return c.b.trunc(c.intrinsic("llvm.smin.v32i16", words, (low, splat(255, I16, 32))), vector(I8, 32))


class Avx512Vnni(Vnni, Avx512):
    """AVX512 with VNNI."""
