"""Layers with int8 or fp16 weights that take and give fp32, on ``torch.ops.quantized``.

A class here takes a :class:`~fxquant.backends.dynamic.Layer`; rows of the table name the class. Activations are
quantized as they come, with one scale and zero point per tensor, to the full range of uint8: without VNNI the weights'
scales leave room for the 16-bit pair sums (:mod:`..saturation`).
"""

from .cells import DynamicCell
from .convolution import PointwiseConv, refuse_window
from .embedding import RowwiseEmbedding, RowwiseEmbeddingBag, refuse_bag, refuse_rows
from .linear import DynamicLinear
from .recurrent import DynamicRecurrent, refuse_recurrent

__all__ = [
    "DynamicCell",
    "DynamicLinear",
    "DynamicRecurrent",
    "PointwiseConv",
    "RowwiseEmbedding",
    "RowwiseEmbeddingBag",
    "refuse_bag",
    "refuse_recurrent",
    "refuse_rows",
    "refuse_window",
]
