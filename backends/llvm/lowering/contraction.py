"""Steps that sum products: convolutions and matrix products."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..codegen.expr import Kind
from ..codegen.isa import Isa
from ..kernels.axes import Axis, freed, merged
from ..kernels.blocks import Block
from ..kernels.depthwise import Depthwise
from ..kernels.epilogue import Epilogue
from ..kernels.gemm import Gemm, WeightStorage
from ..kernels.operands import BYTES
from .steps import Made, Step, scalars
from .terms import Expression
from .tiles import choose_tile, depthwise_tile
from .values import Value
from .weights import WeightStore


@dataclass(frozen=True)
class Window:
    """The window of a convolution, along one spatial axis."""

    size: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1


@dataclass(eq=False)
class ContractionStep(Step):
    """A convolution of integers or of fp32; a linear layer is one without a window.

    Attributes:
        source: the input [N, C, spatial...], channels innermost, with a halo as wide as the padding. Of a linear layer,
            [..., C] with the channels moved to axis 1.
        weight: integers, or fp32 or fp16 for a source of fp32: [O, C / groups, window...].
        windows: by spatial axis.
        groups: of channels.
        scales: fp32 [O, blocks], of blocks of input channels; sums are fp32 then. Only for windows of one pixel.
        four_bits: the integers are multiples of 16, and signed.
        store: holds the packed weight.
        any_rows: other calls will have other numbers of rows.
    """

    source: Value = field(kw_only=True)
    weight: Tensor = field(kw_only=True)
    windows: tuple[Window, ...] = field(kw_only=True)
    groups: int = field(kw_only=True, default=1)
    scales: Tensor | None = field(kw_only=True, default=None)
    four_bits: bool = field(kw_only=True, default=False)
    store: WeightStore = field(kw_only=True)
    any_rows: bool = field(kw_only=True, default=False)

    @property
    def sources(self) -> list[Value]:
        return [self.source]

    @property
    def depthwise(self) -> bool:
        """Whether each output channel reads the input channel of its number."""
        return (
            self.groups == self.weight.shape[0] == self.source.shape[1] > 1
            and 1 <= len(self.windows) <= 2
            and self.windows[-1].dilation == 1
        )

    @property
    def products(self) -> int:
        """Products in all."""
        return math.prod(self.target.shape) * math.prod(self.weight.shape[1:])

    def make(self, isa: Isa) -> Made:
        return self._depthwise(isa) if self.depthwise else self._gemm(isa)

    def _axes(self, expression: Expression) -> tuple[Axis, list[Axis]]:
        """The batch axis and the spatial axes; the tensors are input, output, operands."""
        strides = self.source.strides
        batch = Axis(self.target.shape[0], (strides[0], *self.moves(expression.operands, 0)))
        spatial = [
            Axis(self.target.shape[a], (strides[a] * w.stride, *self.moves(expression.operands, a)))
            for a, w in enumerate(self.windows, 2)
        ]
        return batch, spatial

    @property
    def _first_tap(self) -> Value:
        """The input from the first element of the first window on, which may be halo."""
        value = self.source
        for axis, window in enumerate(self.windows, 2):
            value = value.narrowed(axis, -window.padding, value.shape[axis] + 2 * window.padding)
        return value

    def _gemm(self, isa: Isa) -> Made:
        expression = Expression()
        epilogue = self.epilogue(expression, 1)
        element, groups = self.source.element, self.groups
        size = BYTES[element]
        inputs, outputs = self.weight.shape[1], self.weight.shape[0] // groups
        batch, spatial = self._axes(expression)
        strides = self.source.strides
        taps = [(w.size, w.dilation * strides[a]) for a, w in enumerate(self.windows, 2)]
        run = inputs * size
        while (taps and taps[-1][1] == run) or (taps and taps[-1][0] == 1):
            run *= taps.pop()[0]
        axes = merged([batch, *spatial])
        none = (0,) * len(batch.moves)
        axes = [Axis(1, none)] * (2 - len(axes)) + axes
        outer = axes[:-2]
        if groups > 1:
            steps = (size * inputs, *(e.step * outputs for e in epilogue.elements))
            outer = [Axis(groups, steps), *outer]
        if self.scales is not None:
            run //= self.scales.shape[1]
            taps = [(self.scales.shape[1], run)]
        loops = tuple(t for t in taps if t[0] > 1)
        height, width = axes[-2:]
        storage: WeightStorage = "s4" if self.four_bits else "f16" if self.weight.dtype == torch.float16 else "full"
        draft = Gemm(
            freed(outer), (0,) * (groups > 1), height.freed, width.freed, loops, run, element, storage,
            self.scales is not None, outputs, epilogue, 1, False, isa,
        )  # fmt: skip
        gemm = choose_tile(draft, self.any_rows)
        layout = ("gemm", element, storage, gemm.window, gemm.steps, tuple(gemm.blocks), epilogue.together, isa.name)
        weights = self.store.packed(self.weight, layout, lambda: _packed(gemm, self.weight, groups, self.scales))
        params = _by_block(gemm.blocks, epilogue, expression.channel_params, groups, isa)
        return Made(gemm, (self._first_tap, self.target, *_expanded(expression, self.target), weights, params,
                           scalars(expression)))  # fmt: skip

    def _depthwise(self, isa: Isa) -> Made:
        expression = Expression()
        epilogue = self.epilogue(expression, 1)
        batch, spatial = self._axes(expression)
        strides = self.source.strides
        windows = list(self.windows)
        if len(spatial) == 1:
            spatial = [Axis(1, (0,) * len(batch.moves)), *spatial]
            windows = [Window(1), *windows]
        moves = [windows[0].dilation * (strides[-2] if len(self.windows) == 2 else 0), strides[-1]]
        element, channels = self.source.element, self.weight.shape[0]
        draft = Depthwise(
            freed((batch,) if batch.size > 1 else ()), spatial[0].freed, spatial[1],
            (windows[0].size, windows[1].size), moves[0], moves[1], windows[0].stride, windows[1].stride, element,
            channels, epilogue, isa,
        )  # fmt: skip
        kernel = depthwise_tile(draft, windows[0].dilation)
        layout = ("depthwise", element, kernel.window, tuple(kernel.uses()), tuple(kernel.blocks), epilogue.together,
                  isa.name)  # fmt: skip
        weights = self.store.packed(
            self.weight, layout, lambda: _packed_depthwise(kernel, self.weight.reshape(-1, *kernel.window))
        )
        params = _by_block(kernel.blocks, epilogue, expression.channel_params, 1, isa)
        return Made(kernel, (self._first_tap, self.target, *_expanded(expression, self.target), weights, params,
                             scalars(expression)))  # fmt: skip


WEIGHTS: dict[Kind, torch.dtype] = {"u8": torch.int8, "s16": torch.int16, "f32": torch.float32}  # by kind of input


def _expanded(expression: Expression, target: Value) -> list[Value]:
    return [v.expanded(target.shape) for v in expression.operands]


def _lanes(epilogue: Epilogue, blocks: list[Block], isa: Isa) -> list[list[int]]:
    """The channel of each lane of each block; -1: none."""
    found, first = [], 0
    for block in blocks:
        channels = epilogue.lane_channels(block, isa)
        found.append([first + c if c < block.valid else -1 for c in channels])
        first += block.valid
    return found


def _packed(gemm: Gemm, weight: Tensor, groups: int, scales: Tensor | None) -> Tensor:
    """Weights as the kernel reads them: uint8 [group][block][tap][step][lane][bytes]. Scales are a last step."""
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    each = 4 // BYTES[gemm.element]
    rows = weight.reshape(groups, outputs, inputs, -1).transpose(2, 3).reshape(groups, outputs, gemm.window, -1)
    rows = rows.to(torch.float16 if gemm.storage == "f16" else WEIGHTS[gemm.element])
    steps = gemm.steps + gemm.steps % gemm.shared
    rows = torch.nn.functional.pad(rows, (0, steps * each - rows.shape[-1], 0, 0, 0, 1))  # a last row of zeros
    units = rows.contiguous().view(torch.uint8).unflatten(3, (steps, -1))
    if gemm.storage == "s4":
        first, second = units.unflatten(3, (-1, 2)).unbind(4)
        units = (first >> 4) | second
    if scales is not None:
        padded = torch.nn.functional.pad(scales.float(), (0, 0, 0, 1)).contiguous()
        units = torch.cat([units, padded.view(torch.uint8).view(1, outputs + 1, gemm.window, 1, 4)], 3)
    parts = [
        units[:, lanes].permute(0, 2, 3, 1, 4).reshape(groups, -1)
        for lanes in _lanes(gemm.epilogue, gemm.blocks, gemm.isa)
    ]
    return torch.cat(parts, 1).contiguous()


def _by_block(blocks: list[Block], epilogue: Epilogue, params: list[Tensor], groups: int, isa: Isa) -> Tensor:
    """Parameters per channel: fp32 [group][block][param][lane]."""
    if not params:
        return torch.zeros(1)
    each = torch.stack([p.reshape(groups, -1) for p in params])  # [param, group, channel]
    each = torch.nn.functional.pad(each, (0, 1))
    parts = [each[:, :, lanes].transpose(0, 1).reshape(groups, -1) for lanes in _lanes(epilogue, blocks, isa)]
    return torch.cat(parts, 1).contiguous()


def _packed_depthwise(kernel: Depthwise, weight: Tensor) -> Tensor:
    """Weights as the kernel reads them: [block][row of the window][use][register][lane][column]."""
    weight = weight.to(WEIGHTS[kernel.element])
    padded = torch.nn.functional.pad(weight, (0, 1, 0, 0, 0, 1))  # the tap -1 and the channel -1 are zero
    uses = torch.tensor([use.weights for use in kernel.uses()])
    parts = []
    for lanes in _lanes(kernel.epilogue, kernel.blocks, kernel.isa):
        block = padded[lanes][:, :, uses]  # [lane, row, use, column]
        parts.append(block.permute(1, 2, 0, 3).reshape(-1))
    return torch.cat(parts).contiguous()
