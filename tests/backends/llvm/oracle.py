"""What a step of a plan computes, in plain torch: exact integer sums, and fp32 in the order of the kernels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxquant.backends.llvm.codegen.expr import Binary, Expr, Fma, Operand, Param, Sum, Unary
from fxquant.backends.llvm.codegen.functions import FUNCTIONS
from fxquant.backends.llvm.lowering.contraction import ContractionStep
from fxquant.backends.llvm.lowering.pooling import MaxStep, SumStep
from fxquant.backends.llvm.lowering.products import ProductStep
from fxquant.backends.llvm.lowering.steps import ElementwiseStep, Step
from fxquant.backends.llvm.lowering.terms import Expression
from fxquant.backends.llvm.lowering.values import Value

Read = Callable[[Value], Tensor]


class TorchMachine:
    """fp32 operations on tensors, each rounded once, as :class:`~fxquant.backends.llvm.codegen.functions.Machine`."""

    def const(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float32)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def sub(self, a: Tensor, b: Tensor) -> Tensor:
        return a - b

    def mul(self, a: Tensor, b: Tensor) -> Tensor:
        return a * b

    def div(self, a: Tensor, b: Tensor) -> Tensor:
        return a / b

    def min(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.where(a < b, a, b)

    def max(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.where(a > b, a, b)

    def rint(self, a: Tensor) -> Tensor:
        return torch.round(a)

    def ldexp(self, a: Tensor, n: Tensor) -> Tensor:
        return torch.ldexp(a, n.int())

    def fma(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """The product is exact in fp64, and the sum is rounded to odd there: rounding it to fp32 is the only one."""
        product, term = torch.broadcast_tensors(a.double() * b.double(), c.double())
        total = product + term
        other = total - product
        error = (product - (total - other)) + (term - other)
        bits = total.view(torch.int64)
        even = (bits & 1) == 0
        away = torch.where((error > 0) == (total > 0), bits + 1, bits - 1)
        return torch.where((error != 0) & even, away, bits).view(torch.float64).float()


def evaluate(step: Step, read: Read) -> Tensor:
    """What ``step`` stores, given what is in the tensors that it reads; integers as int32."""
    if isinstance(step, MaxStep):
        return _max(step, read)
    total = _total(step, read)
    expression = Expression()
    tree = expression.of(step.form)
    machine = TorchMachine()

    def value(expr: Expr) -> Tensor:
        match expr:
            case Sum():
                assert total is not None
                return total
            case Operand(index):
                return read(expression.operands[index].expanded(step.target.shape)).float()
            case Param(index, per_channel):
                if not per_channel:
                    return torch.tensor(expression.scalars[index], dtype=torch.float32)
                shape = [1, -1] + [1] * (len(step.target.shape) - 2)
                return expression.channel_params[index].reshape(shape)
            case Fma(factor, other, term):
                return machine.fma(value(factor), value(other), value(term))
            case Binary(op, left, right):
                return getattr(machine, op)(value(left), value(right))
            case Unary(function, inner):
                return FUNCTIONS[function](machine, value(inner))
        raise NotImplementedError(expr)

    result = value(tree).expand(step.target.shape)
    if step.target.element == "f32":
        return result
    least, most = (0, 255) if step.target.element == "u8" else (-32768, 32767)
    return torch.round(result.double()).clamp(least, most).int()


def _total(step: Step, read: Read) -> Tensor | None:
    """The sum of a step, as fp32."""
    if isinstance(step, ElementwiseStep):
        return None
    if isinstance(step, SumStep):
        x = _padded(step.source, [(w.padding, w.padding) for w in step.windows], read).double()
        weight = torch.ones(x.shape[1], 1, *(w.size for w in step.windows), dtype=torch.double)
        return _convolve(x, weight, [w.stride for w in step.windows], [1] * len(step.windows), x.shape[1]).float()
    if isinstance(step, ProductStep):
        return _ordered_product(read(step.left), _matrices(step, read))
    assert isinstance(step, ContractionStep)
    # After the last window there may be inputs that no window reads, and before the first one, too.
    sides = []
    for axis, w in enumerate(step.windows, 2):
        span = (step.target.shape[axis] - 1) * w.stride + (w.size - 1) * w.dilation + 1
        sides.append((w.padding, span - w.padding - step.source.shape[axis]))
    x = _padded(step.source, sides, read).double()
    strides, dilations = [w.stride for w in step.windows], [w.dilation for w in step.windows]
    if step.source.element == "f32":
        return _ordered_sum(x.float(), step, strides, dilations)
    if not step.windows:
        return (x @ step.weight.double().T).float()
    total = _convolve(x, step.weight.double(), strides, dilations, step.groups)
    assert float(total.abs().max()) < 2**31
    return total.float()


def _ordered_sum(x: Tensor, step: ContractionStep, strides: list[int], dilations: list[int]) -> Tensor:
    """A convolution of fp32: products are added one by one, the taps in order and all channels at each."""
    machine, weight, outputs = TorchMachine(), step.weight, step.target.shape[2:]
    inputs, each = weight.shape[1], weight.shape[0] // step.groups
    total = torch.zeros(step.target.shape)
    for number, tap in enumerate(itertools.product(*(range(n) for n in weight.shape[2:]))):
        begin = [t * d for t, d in zip(tap, dilations, strict=True)]
        places = [slice(b, b + (n - 1) * s + 1, s) for b, n, s in zip(begin, outputs, strides, strict=True)]
        for channel in range(inputs):
            everything: Any = (slice(None), slice(None), *places)
            read = x[:, channel::inputs][everything].repeat_interleave(each, 1)
            factor = weight.flatten(2)[:, channel, number].reshape(1, -1, *[1] * len(outputs))
            total = machine.fma(read, factor, total)
    return total


def _ordered_product(left: Tensor, right: Tensor) -> Tensor:
    """A matrix product of fp32: products are added one by one."""
    total, machine = torch.zeros(()), TorchMachine()
    for k in range(left.shape[-1]):
        total = machine.fma(left[..., k : k + 1], right[..., k : k + 1, :], total)
    return total


def _matrices(step: ProductStep, read: Read) -> Tensor:
    """The right matrices of a product, from their panels."""
    panels, parts = read(step.right), []
    blocks, singles, count = step.columns.numbers
    for vectors in [step.columns.vectors] * blocks + [1] * singles:
        size = step.depth * vectors * step.columns.lanes
        parts.append(panels[..., :size].unflatten(-1, (step.depth, -1)))
        panels = panels[..., size:]
    return torch.cat(parts, -1)[..., :count]


def _padded(value: Value, sides: list[tuple[int, int]], read: Read) -> Tensor:
    """A tensor with its halo, or without a part of it where a side is negative."""
    pads = [n for pair in reversed(sides) for n in pair]
    return F.pad(read(value).double(), pads, value=float(value.storage.root.zero))


def _convolve(x: Tensor, weight: Tensor, strides: list[int], dilations: list[int], groups: int) -> Tensor:
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(strides)]
    return function(x, weight, None, strides, 0, dilations, groups)


def _max(step: MaxStep, read: Read) -> Tensor:
    (source,) = step.form.values
    x = read(source).double()
    sides = []
    for axis, w in enumerate(step.windows, 2):
        span = (step.target.shape[axis] - 1) * w.stride + w.size
        sides.append((w.padding, max(0, span - w.padding - x.shape[axis])))
    pads = [n for pair in reversed(sides) for n in pair]
    x = F.pad(x, pads, value=-math.inf)
    function = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[len(step.windows)]
    pooled = function(x, [w.size for w in step.windows], [w.stride for w in step.windows])
    pooled = pooled[tuple(slice(n) for n in step.target.shape)]
    return pooled.float() if step.target.element == "f32" else pooled.int()
