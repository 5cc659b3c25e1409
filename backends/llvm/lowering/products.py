"""Steps that multiply matrices of which both are computed: fp32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..codegen.isa import Isa
from ..kernels.axes import Axis, freed, merged
from ..kernels.blocks import Block
from ..kernels.gemm import Gemm
from ..kernels.panels import Panels
from .steps import Made, Step, element, scalars
from .storage import Storage
from .terms import Expression
from .tiles import choose_tile
from .values import Value


@dataclass(eq=False)
class PanelStep(Step):
    """Lays out the right matrices as the kernel of :class:`ProductStep` reads them.

    Attributes:
        source: [groups..., depth, channels], fp32.
        blocks: of channels.
    """

    source: Value = field(kw_only=True)
    blocks: tuple[Block, ...] = field(kw_only=True)

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
        kernel = Panels(freed(outer), depth, source.strides[-2], element(source, len(groups) + 1), self.blocks, isa)
        return Made(kernel, (target, source))


@dataclass(eq=False)
class ProductStep(Step):
    """Products of matrices: [groups..., rows, depth] times [groups..., depth, channels]. Its sum is the product.

    Attributes:
        left: fp32, the last axis contiguous.
        right: what :class:`PanelStep` wrote.
        blocks: of channels.
        depth: how many products a sum has.
    """

    left: Value = field(kw_only=True)
    right: Value = field(kw_only=True)
    blocks: tuple[Block, ...] = field(kw_only=True)
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
        rows, last = len(shape) - 2, len(shape) - 1
        expression = Expression()
        epilogue = self.epilogue(expression, last)
        left = self.left.expanded((*shape[:rows], *self.left.shape[-2:]))
        operands = [v.expanded(shape) for v in expression.operands]
        axes = [Axis(shape[a], (left.strides[a], *self.moves(operands, a))) for a in range(rows + 1)]
        grouped = [a for a in range(rows) if self.right.shape[a] > 1]
        outer = [axes[a] for a in grouped]
        free = merged([axes[a] for a in range(rows + 1) if a not in grouped])
        free = [Axis(1, (0,) * (2 + len(operands)))] * (2 - len(free)) + free
        outer += free[:-2]
        draft = Gemm(
            freed(outer), tuple(range(len(grouped))), free[-2].freed, free[-1].freed, (), 4 * self.depth, "f32", False,
            shape[last], epilogue, self.blocks[0].vectors, False, isa,
        )  # fmt: skip
        gemm = choose_tile(draft, vectors=draft.vectors)
        nothing = scalars(Expression())
        return Made(gemm, (self.left, self.target, *operands, self.right, nothing, scalars(expression)))


def panels_of(groups: tuple[int, ...], depth: int, blocks: Sequence[Block], isa: Isa) -> Value:
    """Memory for panels."""
    shape = (*groups, depth * isa.lanes * sum(b.vectors for b in blocks))
    return Value.of(Storage("f32", shape, tuple(range(len(shape))), dense=True))
