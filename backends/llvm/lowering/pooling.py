"""Steps that pool over windows."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..codegen.isa import Isa
from ..kernels.axes import Axis, freed, merged
from ..kernels.epilogue import Epilogue
from ..kernels.pool import MaxPool, SumPool
from ..kernels.pool import Window as PoolWindow
from .contraction import Window
from .steps import Made, Step, scalars
from .terms import Expression
from .values import Value


@dataclass(eq=False)
class SumStep(Step):
    """Sums over windows; its form scales them to averages. Channels are axis 1 of source and target, innermost.

    Attributes:
        windows: by spatial axis; the halo of the source is as wide as their padding.
    """

    source: Value = field(kw_only=True)
    windows: tuple[Window, ...] = field(kw_only=True)

    @property
    def sources(self) -> list[Value]:
        return [self.source]

    def _joins(self, epilogue: Epilogue) -> bool:
        """Whether registers of channels may be summed and packed together."""
        return epilogue.together == 4 and self.source.element == "u8"

    def make(self, isa: Isa) -> Made:
        expression = Expression()
        epilogue = self.epilogue(expression, 1)
        strides, value = self.source.strides, self.source
        axes = [Axis(self.target.shape[0], (strides[0], *self.moves(expression.operands, 0)))]
        for axis, window in enumerate(self.windows, 2):
            moves = strides[axis] * window.stride, *self.moves(expression.operands, axis)
            axes.append(Axis(self.target.shape[axis], moves))
            value = value.narrowed(axis, -window.padding, value.shape[axis] + 2 * window.padding)
        inside = [Axis(w.size, (strides[a],)) for a, w in enumerate(self.windows, 2)]
        window_loops = tuple((a.size, a.moves[0]) for a in merged(inside))
        channels = self.target.shape[1]
        vectors = next((v for v in (4, 2, 1) if v * isa.lanes * 4 <= channels and self._joins(epilogue)), 1)
        kernel = SumPool(freed(merged(axes)), window_loops, channels, self.source.element, vectors, epilogue, isa)
        operands = [v.expanded(self.target.shape) for v in expression.operands]
        return Made(kernel, (value, self.target, *operands, scalars(expression)))


@dataclass(eq=False)
class MaxStep(Step):
    """The largest of each window. Its form is the source."""

    windows: tuple[Window, ...] = field(kw_only=True)

    def make(self, isa: Isa) -> Made:
        (source,) = self.form.values
        strides, target = source.strides, self.target.strides
        outer = freed(merged([Axis(self.target.shape[0], (strides[0], target[0]))]))
        windows = tuple(
            PoolWindow(self.target.shape[a], target[a], source.shape[a], strides[a], w.size, w.stride, w.padding)
            for a, w in enumerate(self.windows, 2)
        )
        kernel = MaxPool(outer, windows, self.target.shape[1], source.element, isa)
        return Made(kernel, (source, self.target))
