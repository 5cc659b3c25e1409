"""Functions of fp32 vectors as a fixed sequence of fp32 operations, written once for LLVM and for plain torch.

``m`` is a :class:`Machine`: its methods emit IR, or compute on tensors. Both round after every operation, so that they
give the same bits.
"""

from __future__ import annotations

from typing import Any, Protocol

V = Any  # a vector of the machine


class Machine(Protocol):
    """fp32 operations, each rounded half to even."""

    def const(self, value: float) -> V: ...
    def add(self, a: V, b: V) -> V: ...
    def sub(self, a: V, b: V) -> V: ...
    def mul(self, a: V, b: V) -> V: ...
    def div(self, a: V, b: V) -> V: ...
    def min(self, a: V, b: V) -> V:
        """The smaller one; ``b`` if either is NaN."""

    def max(self, a: V, b: V) -> V:
        """The larger one; ``b`` if either is NaN."""

    def fma(self, a: V, b: V, c: V) -> V:
        """a * b + c, rounded once."""

    def rint(self, a: V) -> V:
        """To the nearest integer, half to even."""

    def ldexp(self, a: V, n: V) -> V:
        """a * 2**n for an integer ``n``; neither ``a`` nor the result is subnormal. NaN if both are."""


def exp(m: Machine, x: V) -> V:
    """e**x to 2e-7 of its value, for x from -87 to 87; others are limited to that."""
    return _exp2(m, m.mul(x, m.const(1.4426950408889634)))


def _exp2(m: Machine, x: V) -> V:
    """2**x: a polynomial on the part behind the point, from -0.5 to 0.5. Minimax in relative error: 7.5e-8."""
    x = _limited(m, x, -125.5, 125.5)
    n = m.rint(x)
    coefficients = (0.00132764719, 0.00967554148, 0.0555071267, 0.240221197, 0.693146967, 1.00000007)
    return m.ldexp(_polynomial(m, m.sub(x, n), coefficients), n)


def sigmoid(m: Machine, x: V) -> V:
    return m.div(m.const(1.0), _one_plus_exp_minus(m, x))


def silu(m: Machine, x: V) -> V:
    return m.div(x, _one_plus_exp_minus(m, x))


def tanh(m: Machine, x: V) -> V:
    """2 * sigmoid(2x) - 1, to 2e-7."""
    return m.sub(m.div(m.const(2.0), _one_plus_exp_minus(m, m.add(x, x))), m.const(1.0))


def gelu(m: Machine, x: V) -> V:
    """x * sigmoid(u) with u = 1.595 x + 0.07401 x**3 - 0.000703 x**5, which is within 2.6e-5 of x * Phi(x)."""
    limited = _limited(m, x, -6.0, 6.0)
    square = m.mul(limited, limited)
    factor = _polynomial(m, square, (-0.000703034053, 0.0740112951, 1.59501577))
    return m.div(x, _one_plus_exp_minus(m, m.mul(limited, factor)))


def gelu_tanh(m: Machine, x: V) -> V:
    """x * sigmoid(2u) with u = sqrt(2 / pi) (x + 0.044715 x**3), as ``approximate="tanh"``."""
    square = m.mul(x, x)
    factor = m.fma(square, m.const(0.07135481283), m.const(1.5957691216))
    return m.div(x, _one_plus_exp_minus(m, m.mul(x, factor)))


def hardswish(m: Machine, x: V) -> V:
    return m.mul(x, hardsigmoid(m, x))


def hardsigmoid(m: Machine, x: V) -> V:
    return _limited(m, m.fma(x, m.const(1.0 / 6.0), m.const(0.5)), 0.0, 1.0)


def _limited(m: Machine, x: V, low: float, high: float) -> V:
    """``x`` between two bounds; NaN stays NaN."""
    return m.min(m.const(high), m.max(m.const(low), x))


def _one_plus_exp_minus(m: Machine, x: V) -> V:
    return m.add(m.const(1.0), _exp2(m, m.mul(x, m.const(-1.4426950408889634))))


def _polynomial(m: Machine, x: V, coefficients: tuple[float, ...]) -> V:
    total = m.const(coefficients[0])
    for value in coefficients[1:]:
        total = m.fma(total, x, m.const(value))
    return total


FUNCTIONS = {f.__name__: f for f in (exp, sigmoid, silu, tanh, gelu, gelu_tanh, hardswish, hardsigmoid)}
