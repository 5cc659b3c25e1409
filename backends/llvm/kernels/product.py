"""Products of fp32 matrices of which both are computed: their sizes are read at run time.

The right matrix lies in panels, see :mod:`.panels`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..codegen.code import F32, Code, Value, i64, vector
from ..codegen.emit import zeros
from ..codegen.isa import Isa
from .axes import Axis, Tiles, count, numbers_of
from .blocks import Block
from .columns import ColumnLoops, Columns
from .epilogue import Epilogue, Store


@dataclass(frozen=True)
class Product:
    """Matrix products. The tensors of an axis are left, output, operands, right.

    Attributes:
        axes: the groups, and the rows of a tile last.
        depth: products of a sum.
        columns: of the output.
        epilogue: what is stored, in fp32.
    """

    axes: tuple[Axis, ...]
    depth: int
    columns: Columns
    epilogue: Epilogue
    isa: Isa

    def __repr__(self) -> str:
        """What the code depends on."""
        return f"Product({self.axes}, {self.columns}, {self.epilogue}, {self.isa})"

    @property
    def items(self) -> int:
        """Units of work."""
        return count(self.axes)

    @property
    def numbers(self) -> tuple[int, ...]:
        """What is read at run time."""
        return *numbers_of(self.axes), self.depth, *self.columns.numbers

    def emit(self, name: str) -> str:
        """The kernel as IR. Arguments: left, output, operands, right, parameters per channel, scalars."""
        return _Emitter(self, Code(name)).emit()


class _Emitter:
    def __init__(self, product: Product, code: Code) -> None:
        self.p, self.c, self.isa = product, code, product.isa
        tensors = 3 + len(product.epilogue.operands)
        self.tensors = [code.pointer(i) for i in range(tensors)]
        self.params, self.scalars = (code.pointer(tensors + i) for i in range(2))
        place = len(numbers_of(product.axes))
        self.depth = code.number(place)
        self.columns = ColumnLoops(code, product.columns, place + 1)

    def emit(self) -> str:
        c, tiles = self.c, Tiles(self.c, self.p.axes)
        moves = tiles.moves(-1)
        rows = range(self.p.axes[-1].tile)
        with c.loop(c.low, c.high) as item:
            at, _ = tiles.locate(item, self.tensors)
            lefts, *stored = ([c.at(p, c.times(i64(r), m)) for r in rows] for p, m in zip(at, moves, strict=True))
            stored, right = stored[:-1], at[-1]

            def block(first: Value, vectors: int) -> None:
                sums = self._sums(lefts, c.at(right, c.b.mul(first, c.times(self.depth, 4))), vectors)
                self.columns.part(first, vectors, lambda rest: self._store(sums, stored, first, vectors, rest))

            self.columns.each(block)
        return c.finish()

    def _sums(self, lefts: list[Value], panel: Value, vectors: int) -> list[list[Value]]:
        """The products of rows with a panel."""
        c, lanes, start = self.c, self.isa.lanes, zeros(self.isa, "f32")
        sums = [[c.variable(start.type, start) for _ in range(vectors)] for _ in lefts]
        dot = self.isa.dot_of("f32")

        def step(k: Value) -> None:
            weights = c.at(panel, c.times(k, 4 * lanes * vectors))
            b = [c.load(c.at(weights, 4 * lanes * v), vector(F32, lanes)) for v in range(vectors)]
            for left, row in zip(lefts, sums, strict=True):
                a = c.repeat(c.load(c.at(left, c.times(k, 4)), F32), lanes)
                for slot, register in zip(row, b, strict=True):
                    c.b.store(dot(c, c.b.load(slot), a, register), slot)

        even = c.b.and_(self.depth, i64(-2))
        with c.loop(0, even, 2) as k:
            step(k)
            step(c.b.add(k, i64(1)))
        with c.loop(even, self.depth) as k:
            step(k)
        return [[c.b.load(slot) for slot in row] for row in sums]

    def _store(
        self, sums: list[list[Value]], stored: list[list[Value]], first: Value, vectors: int, rest: Value | None
    ) -> None:
        c, elements = self.c, self.p.epilogue.elements
        store = Store(c, self.isa, self.p.epilogue, self.params, self.scalars)
        for row, totals in enumerate(sums):
            at = [c.at(p[row], c.times(first, e.step)) for p, e in zip(stored, elements, strict=True)]
            store.block(totals, at, Block(vectors, vectors * self.isa.lanes), rest)
