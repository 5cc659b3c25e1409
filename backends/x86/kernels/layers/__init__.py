"""Layers with int8 or fp16 weights that take and return fp32, on ``torch.ops.quantized``.

Each class is made of a :class:`~fxquant.backends.base.dynamic_spec.DynamicSpec`. Activations are quantized at run time,
with one scale and zero point per tensor, to the full range of uint8: without VNNI the scales of the weights leave room
for the 16-bit pair sums (:mod:`fxquant.backends.x86.bindings.saturation`).
"""

from .cells import DynamicCell
from .convolution import PointwiseConv, refuse_window
from .embedding import RowwiseEmbedding, RowwiseEmbeddingBag
from .linear import DynamicLinear
from .recurrent import DynamicRecurrent, refuse_projections

__all__ = [
    "DynamicCell",
    "DynamicLinear",
    "DynamicRecurrent",
    "PointwiseConv",
    "RowwiseEmbedding",
    "RowwiseEmbeddingBag",
    "refuse_projections",
    "refuse_window",
]
