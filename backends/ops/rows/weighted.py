"""Layers with weights that are quantized."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ...base.op import Call, OpRow, Output
from ..convolution import refuse_convolution
from ..embedding import CHANGING
from .kinds import always_fp32

NO_STATIC_FORM = "it has no static int8 form"


def _refuse_embedding(call: Call) -> str | None:
    return CHANGING if call.param("max_norm") else None


def _convolution(dims: int) -> OpRow:
    return OpRow(
        f"conv{dims}d",
        getattr(nn, f"Conv{dims}d"),
        (getattr(torch, f"conv{dims}d"),),
        "stride padding dilation groups",
        weighted=True,
        functional=getattr(F, f"conv{dims}d"),
        saturates=True,
        refuse=refuse_convolution,
    )


def _transposed_convolution(dims: int) -> OpRow:
    return OpRow(
        f"conv_transpose{dims}d",
        getattr(nn, f"ConvTranspose{dims}d"),
        (),
        "stride padding output_padding groups dilation",
        weighted=True,
        functional=getattr(F, f"conv_transpose{dims}d"),
        channel_axis=1,
        saturates=True,
        refuse=refuse_convolution,
    )


ROWS = [
    *(_convolution(dims) for dims in (1, 2, 3)),
    *(_transposed_convolution(dims) for dims in (1, 2, 3)),
    OpRow("linear", nn.Linear, weighted=True, functional=F.linear, saturates=True, channels_last=True),
    OpRow(
        "embedding",
        nn.Embedding,
        params="padding_idx max_norm norm_type scale_grad_by_freq sparse",
        output=Output.WEIGHT_ONLY,
        weighted=True,
        functional=F.embedding,
        refuse=_refuse_embedding,
    ),
    *(
        always_fp32(cls.__name__.lower(), cls, reason=NO_STATIC_FORM)
        for cls in (nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell, nn.RNNCell, nn.RNN)
    ),
    always_fp32("embedding_bag", nn.EmbeddingBag, reason=NO_STATIC_FORM),
]
