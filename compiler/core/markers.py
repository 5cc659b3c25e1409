"""Base classes that tell a float model from what fxquant makes of one."""

from __future__ import annotations


class Quantized:
    """A module that fxquant made, or that is part of one: it cannot be quantized again."""


class InTraining(Quantized):
    """A module in quantization-aware training."""
