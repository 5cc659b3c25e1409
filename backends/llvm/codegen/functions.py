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
    def min(self, a: V, b: V) -> V: ...
    def max(self, a: V, b: V) -> V: ...
    def rint(self, a: V) -> V:
        """To the nearest integer, half to even."""

    def power_of_two(self, a: V) -> V:
        """2**a for an integer ``a`` from -126 to 127."""


def exp(m: Machine, x: V) -> V:
    """e**x to about one unit in the last place, as in the Cephes library; x is limited to [-87, 88]."""
    x = m.min(m.max(x, m.const(-87.0)), m.const(88.0))
    n = m.rint(m.mul(x, m.const(1.44269504088896341)))
    r = m.sub(m.sub(x, m.mul(n, m.const(0.693359375))), m.mul(n, m.const(-2.12194440e-4)))
    p = _polynomial(m, r, (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5))
    y = m.add(m.add(m.mul(p, m.mul(r, r)), r), m.const(1.0))
    return m.mul(y, m.power_of_two(n))


def sigmoid(m: Machine, x: V) -> V:
    return m.div(m.const(1.0), m.add(m.const(1.0), exp(m, m.sub(m.const(0.0), x))))


def silu(m: Machine, x: V) -> V:
    return m.div(x, m.add(m.const(1.0), exp(m, m.sub(m.const(0.0), x))))


def tanh(m: Machine, x: V) -> V:
    """2 * sigmoid(2x) - 1, whose error is that of rounding near zero."""
    return m.sub(m.mul(m.const(2.0), sigmoid(m, m.mul(m.const(2.0), x))), m.const(1.0))


def gelu_tanh(m: Machine, x: V) -> V:
    """x * sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x**3): the approximation of Hendrycks and Gimpel 2016."""
    cube = m.mul(m.mul(x, x), x)
    inner = m.mul(m.const(1.5957691216057308), m.add(x, m.mul(m.const(0.044715), cube)))
    return m.mul(x, sigmoid(m, inner))


def gelu(m: Machine, x: V) -> V:
    """x * (1 + erf(x / sqrt(2))) / 2."""
    half = m.mul(m.const(0.5), x)
    return m.add(half, m.mul(half, _erf(m, m.mul(x, m.const(0.7071067811865476)))))


def _erf(m: Machine, x: V) -> V:
    """To 1.5e-7, Abramowitz and Stegun 7.1.26."""
    size = m.max(x, m.sub(m.const(0.0), x))
    t = m.div(m.const(1.0), m.add(m.const(1.0), m.mul(m.const(0.3275911), size)))
    p = _polynomial(m, t, (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592))
    tail = m.mul(m.mul(p, t), exp(m, m.sub(m.const(0.0), m.mul(size, size))))
    # The sign of x: x / |x|, and a number near one where x is not tiny.
    sign = m.max(m.min(m.mul(x, m.const(1e30)), m.const(1.0)), m.const(-1.0))
    return m.mul(sign, m.sub(m.const(1.0), tail))


def hardswish(m: Machine, x: V) -> V:
    return m.mul(m.mul(x, _three_to_nine(m, x)), m.const(1.0 / 6.0))


def hardsigmoid(m: Machine, x: V) -> V:
    return m.mul(_three_to_nine(m, x), m.const(1.0 / 6.0))


def relu(m: Machine, x: V) -> V:
    return m.max(x, m.const(0.0))


def rint(m: Machine, x: V) -> V:
    return m.rint(x)


def _three_to_nine(m: Machine, x: V) -> V:
    return m.min(m.max(m.add(x, m.const(3.0)), m.const(0.0)), m.const(6.0))


def _polynomial(m: Machine, x: V, coefficients: tuple[float, ...]) -> V:
    first, *rest = coefficients
    total = m.const(first)
    for value in rest:
        total = m.add(m.mul(total, x), m.const(value))
    return total


FUNCTIONS = {
    f.__name__: f for f in (exp, sigmoid, silu, tanh, gelu_tanh, gelu, hardswish, hardsigmoid, relu, rint)
}
