"""One or more small models for every row of the op table, each with inputs that reach the kernels of the row."""

from . import activations, pointwise, removed, shapes, weighted  # noqa: F401  # they fill CASES
from .case import CASES, OpCase

__all__ = ["CASES", "OpCase"]
