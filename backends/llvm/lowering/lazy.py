"""Float values that are not computed yet, and the layout that they will have."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from ....compiler.core.qparams import QParams
from ..codegen.expr import Kind
from .steps import Step
from .storage import TOPS
from .terms import Apply, Form
from .values import Value

Draft = Callable[[Form, Value], list[Step]]  # form, target -> the steps that sum


@dataclass(frozen=True, eq=False)
class Lazy:
    """A float value that is not computed yet, or that is read from a tensor as it is.

    Attributes:
        form: how it is computed.
        shape: of the value.
        node: the op that gives it.
        order: its axes in memory, outermost first, once it is computed.
        draft: makes the step of its sum, if the form has one.
        clamp: bounds that are applied to the form.
        ops: what the form computes.
        per_channel: its step takes parameters for each index of axis 1.
    """

    form: Form
    shape: tuple[int, ...]
    node: fx.Node
    order: tuple[int, ...]
    draft: Draft | None = None
    clamp: tuple[float, float] = (-math.inf, math.inf)
    ops: tuple[fx.Node, ...] = ()
    per_channel: bool = False

    @property
    def plain(self) -> tuple[Value, float, int] | None:
        """The tensor, its scale and zero point, if the value is nothing but that."""
        if self.clamp != (-math.inf, math.inf) or len(self.form.terms) != 1:
            return None
        leaf, factor = self.form.terms[0]
        if (
            not isinstance(leaf, Value)
            or factor.numel() > 1
            or self.form.constant.numel() > 1
            or leaf.shape != self.shape
        ):
            return None
        scale, constant = float(factor), float(self.form.constant)
        if leaf.element == "f32":
            return (leaf, 1.0, 0) if scale == 1 and constant == 0 else None
        if scale <= 0:
            return None
        zero = -constant / scale
        whole = abs(zero - round(zero)) < 1e-4 and 0 <= round(zero) <= (255 if leaf.element == "u8" else 0)
        return (leaf, scale, round(zero)) if whole else None

    @property
    def clamped(self) -> Form:
        """The form with the bounds applied."""
        return bounded(self.form, *self.clamp)


def bounded(form: Form, low: float, high: float) -> Form:
    """``form``, clamped. NaN stays NaN."""
    for op, bound in (("max", low), ("min", high)):
        if math.isfinite(bound):
            limit = max(form.bound, abs(bound))
            form = Form.of(Apply(op, (constant_form(bound), form)), bound=limit)
    if math.isfinite(low) and math.isfinite(high):
        form = replace(form, bound=max(abs(low), abs(high)))
    return form


def constant_form(value: Tensor | float) -> Form:
    number = torch.as_tensor(value, dtype=torch.double)
    return Form((), number, float(number.abs().max()) if number.numel() else 0.0)


def read_form(value: Value, scale: float = 1.0, zero_point: int = 0) -> Form:
    """A tensor as the real numbers that it stands for."""
    bound = TOPS[value.element] * scale
    return Form.of(value, scale, -scale * zero_point, bound)


def element_of(qparams: QParams) -> Kind:
    """What holds the integers."""
    return "s16" if qparams.qmax - qparams.qmin > 255 else "u8"


def shift_of(qparams: QParams) -> int:
    """What is added to the integers to hold them."""
    return 0 if element_of(qparams) == "s16" else -qparams.qmin
