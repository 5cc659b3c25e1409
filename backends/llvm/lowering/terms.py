"""Float values that are not computed yet, as linear forms over what a kernel can read.

A quantized value is ``scale * integer - scale * zero_point``, a convolution ``scale * sum + bias``, and sums of such
stay linear: they cost one product and one sum per term in the end, however many ops made them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..codegen.expr import Binary, Expr, Fma, Operand, Param, Sum, Unary
from .values import Value


@dataclass(frozen=True)
class Total:
    """The sum of the step whose output this is a part of: int32 or fp32."""


@dataclass(frozen=True, eq=False)
class Apply:
    """A function of forms; its arguments are computed first."""

    op: str
    arguments: tuple[Form, ...]


Leaf = Total | Value | Apply


@dataclass(frozen=True, eq=False)
class Form:
    """``sum(factor * leaf) + constant``.

    Attributes:
        terms: leaf and factor: a double, or one for each channel.
        constant: a double, or one for each channel.
        bound: the largest magnitude that it can have; infinite if it is not known.
    """

    terms: tuple[tuple[Leaf, Tensor], ...]
    constant: Tensor
    bound: float = math.inf

    @staticmethod
    def of(
        leaf: Leaf, factor: Tensor | float = 1.0, constant: Tensor | float = 0.0, bound: float = float("inf")
    ) -> Form:
        """One term and a constant."""
        return Form(((leaf, _double(factor)),), _double(constant), bound)

    def plus(self, other: Form, sign: float = 1.0) -> Form:
        """The sum of two forms. A leaf that both have is one term."""
        terms = list(self.terms)
        for leaf, factor in other.terms:
            known = next((i for i, (mine, _) in enumerate(terms) if mine is leaf), None)
            if known is None:
                terms.append((leaf, sign * factor))
            else:
                terms[known] = leaf, terms[known][1] + sign * factor
        return Form(tuple(terms), self.constant + sign * other.constant, self.bound + other.bound)

    def scaled(self, factor: Tensor | float, shift: Tensor | float = 0.0) -> Form:
        """``factor * self + shift``."""
        factor, shift = _double(factor), _double(shift)
        bound = self.bound * float(factor.abs().max()) + float(shift.abs().max())
        return Form(tuple((leaf, f * factor) for leaf, f in self.terms), self.constant * factor + shift, bound)

    def with_values(self, change: Callable[[Value], Value]) -> Form:
        """The form with every tensor that it reads replaced."""

        def of(leaf: Leaf) -> Leaf:
            if isinstance(leaf, Apply):
                return Apply(leaf.op, tuple(form.with_values(change) for form in leaf.arguments))
            return change(leaf) if isinstance(leaf, Value) else leaf

        return Form(tuple((of(leaf), factor) for leaf, factor in self.terms), self.constant, self.bound)

    def with_total(self, total: Form) -> Form:
        """The form with ``total`` for the sum."""
        terms: list[tuple[Leaf, Tensor]] = []
        constant = self.constant
        for leaf, factor in self.terms:
            if isinstance(leaf, Total):
                terms += [(inner, factor * f) for inner, f in total.terms]
                constant = constant + factor * total.constant
            elif isinstance(leaf, Apply):
                terms.append((Apply(leaf.op, tuple(form.with_total(total) for form in leaf.arguments)), factor))
            else:
                terms.append((leaf, factor))
        return Form(tuple(terms), constant, self.bound)

    @property
    def leaves(self) -> list[Leaf]:
        """What it reads, also inside of functions."""
        found: list[Leaf] = []
        for leaf, _ in self.terms:
            if isinstance(leaf, Apply):
                found += [inner for form in leaf.arguments for inner in form.leaves]
            else:
                found.append(leaf)
        return found

    @property
    def values(self) -> list[Value]:
        """The tensors that it reads."""
        return list(dict.fromkeys(leaf for leaf in self.leaves if isinstance(leaf, Value)))


@dataclass
class Expression:
    """A form as an expression of a kernel, with what its places stand for.

    Attributes:
        operands: the tensors, by the index of :class:`Operand`.
        channel_params: fp32 [channels], by the index of a :class:`Param` per channel.
        scalars: by the index of the other :class:`Param`.
    """

    operands: list[Value] = field(default_factory=list)
    channel_params: list[Tensor] = field(default_factory=list)
    scalars: list[float] = field(default_factory=list)

    def of(self, form: Form) -> Expr:
        """The expression of a form: the constant plus each term in order."""
        total: Expr | None = self._param(form.constant) if bool((form.constant != 0).any()) else None
        for leaf, factor in form.terms:
            term, one = self._leaf(leaf), bool((factor == 1).all())
            if total is None:
                total = term if one else Binary("mul", term, self._param(factor))
            else:
                total = Binary("add", term, total) if one else Fma(term, self._param(factor), total)
        return total if total is not None else self._param(form.constant)

    def _leaf(self, leaf: Leaf) -> Expr:
        if isinstance(leaf, Total):
            return Sum()
        if isinstance(leaf, Value):
            if leaf not in self.operands:
                self.operands.append(leaf)
            return Operand(self.operands.index(leaf))
        arguments = [self.of(form) for form in leaf.arguments]
        if leaf.op in BINARY:
            return Binary(leaf.op, *arguments)  # type: ignore[arg-type]
        return Unary(leaf.op, *arguments)

    def _param(self, value: Tensor) -> Param:
        if value.numel() == 1:
            number = float(value)
            if number not in self.scalars:
                self.scalars.append(number)
            return Param(self.scalars.index(number), False)
        self.channel_params.append(value.float())
        return Param(len(self.channel_params) - 1, True)


BINARY = ("add", "sub", "mul", "div", "min", "max")


def _double(value: Tensor | float) -> Tensor:
    return torch.as_tensor(value, dtype=torch.double)
