"""Pools and averages."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ...base.op import Call, OpRow
from .kinds import shared

_MAX = "kernel_size stride padding dilation ceil_mode return_indices"
_AVG = "kernel_size stride padding ceil_mode count_include_pad divisor_override"


def _refuse_indices(call: Call) -> str | None:
    return "it returns indices" if call.param("return_indices", False) else None


def _refuse_mean_of_all(call: Call) -> str | None:
    return None if "dim" in call.node.kwargs else "it averages over the batch, too"


def _max_pool(dims: int) -> OpRow:
    pairs = getattr(F, f"max_pool{dims}d_with_indices")
    spellings = getattr(nn, f"MaxPool{dims}d"), getattr(torch, f"max_pool{dims}d"), pairs
    function = getattr(F, f"max_pool{dims}d")
    return shared(f"max_pool{dims}d", function, spellings, _MAX, refuse=_refuse_indices, keeps_channels=True)


ROWS = [
    *(_max_pool(dims) for dims in (1, 2, 3)),
    # Averages span a smaller range than their input: rounded to its integers, two in a row would lose 20 dB.
    OpRow("avg_pool2d", F.avg_pool2d, (nn.AvgPool2d,), _AVG, scale_equivariant=True),
    OpRow("avg_pool3d", F.avg_pool3d, (nn.AvgPool3d,), _AVG, scale_equivariant=True),
    OpRow("avg_pool1d", F.avg_pool1d, (nn.AvgPool1d,), "kernel_size stride padding ceil_mode count_include_pad",
          scale_equivariant=True),
    *(
        OpRow(f"adaptive_avg_pool{d}d", getattr(F, f"adaptive_avg_pool{d}d"), (getattr(nn, f"AdaptiveAvgPool{d}d"),),
              "output_size", scale_equivariant=True)
        for d in (1, 2, 3)
    ),
    OpRow("mean", torch.mean, ("mean",), "dim keepdim", scale_equivariant=True, refuse=_refuse_mean_of_all),
]  # fmt: skip
