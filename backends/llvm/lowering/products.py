"""Steps that multiply matrices of which both are computed: fp32."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..codegen.isa import Isa
from ..kernels.axes import Axis, freed, merged
from ..kernels.columns import Columns
from ..kernels.panels import Panels
from ..kernels.product import Product
from .steps import Made, Step, element, scalars
from .storage import Storage
from .terms import Expression
from .tiles import tile_of_rows
from .values import Value


@dataclass(eq=False)
class PanelStep(Step):
    """Lays out the right matrices as the kernel of :class:`ProductStep` reads them.

    Attributes:
        source: [groups..., depth, columns], fp32.
        columns: how they lie in registers.
    """

    source: Value = field(kw_only=True)
    columns: Columns = field(kw_only=True)

    @property
    def sources(self) -> list[Value]:
        return [self.source]

    @property
    def kind(self) -> str:
        return "layout"

    def make(self, isa: Isa) -> Made:
        source, target = self.source, self.target
        *groups, depth, _ = source.shape
        outer = merged([Axis(n, (target.strides[a], source.strides[a])) for a, n in enumerate(groups)])
        columns = element(source, len(groups) + 1)
        return Made(Panels(freed(outer), depth, source.strides[-2], columns, self.columns, isa), (target, source))


@dataclass(eq=False)
class ProductStep(Step):
    """Products of matrices: [groups..., rows, depth] times [groups..., depth, columns]. Its sum is the product.

    Attributes:
        left: fp32, the last axis contiguous.
        right: what :class:`PanelStep` wrote.
        columns: how they lie in registers.
        depth: how many products a sum has.
    """

    left: Value = field(kw_only=True)
    right: Value = field(kw_only=True)
    columns: Columns = field(kw_only=True)
    depth: int = field(kw_only=True)

    @property
    def sources(self) -> list[Value]:
        return [self.left, self.right]

    @property
    def products(self) -> int:
        """Products in all."""
        return self.target.numel * self.depth

    def make(self, isa: Isa) -> Made:
        shape = self.target.shape
        groups, last = len(shape) - 2, len(shape) - 1
        expression = Expression()
        epilogue = self.epilogue(expression, last)
        left = self.left.expanded((*shape[:groups], *self.left.shape[-2:]))
        right = self.right.expanded((*shape[:groups], self.right.shape[-1]))
        operands = [v.expanded(shape) for v in expression.operands]
        axes = merged([
            Axis(shape[a], (left.strides[a], *self.moves(operands, a), right.strides[a] if a < groups else 0))
            for a in range(groups + 1)
        ])  # fmt: skip
        if not axes or axes[-1].moves[-1]:
            axes.append(Axis(1, (0,) * (3 + len(operands))))  # a tile has rows of one product
        rows = replace(axes[-1], tile=tile_of_rows(axes[-1].size, self.columns.vectors, isa), loose=True).freed
        kernel = Product((*freed(axes[:-1]), rows), self.depth, self.columns, epilogue, isa)
        return Made(kernel, (self.left, self.target, *operands, self.right, scalars(Expression()), scalars(expression)))


def panels_of(groups: tuple[int, ...], depth: int, columns: Columns) -> Value:
    """Memory for panels."""
    shape = (*groups, depth * columns.lanes * columns.registers)
    return Value.of(Storage("f32", shape, tuple(range(len(shape))), dense=True))
