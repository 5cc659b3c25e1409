"""Candidates for each kind of call, on ``torch.ops.quantized`` and ``torch.ops.onednn``.

A function here takes an :class:`~fxquant.backends.x86.calls.Int8Call` and returns its candidates; rows of the table
name the function.
"""

from .convolution import conv, conv2d_activation, conv2d_add, conv_transpose
from .fp32 import no_kernels
from .linear import embedding, linear, linear_activation
from .pointwise import batch_norm, binary, cat, elementwise, elementwise_pair, elu, fixed, silu

__all__ = [
    "batch_norm",
    "binary",
    "cat",
    "conv",
    "conv2d_activation",
    "conv2d_add",
    "conv_transpose",
    "elementwise",
    "elementwise_pair",
    "elu",
    "embedding",
    "fixed",
    "linear",
    "linear_activation",
    "no_kernels",
    "silu",
]
