"""Normalizations."""

from __future__ import annotations

from torch import nn

from ...base.op import Call, OpRow
from ..any_batch_norm import AnyBatchNorm
from .kinds import always_fp32, observed


def _refuse_batch_norm(call: Call) -> str | None:
    return "it keeps no running statistics" if call.param("running_mean") is None else None


def _refuse_instance_norm(call: Call) -> str | None:
    return "it keeps running statistics" if call.param("track_running_stats") else None


ROWS = [
    *(
        observed(f"batch_norm{d}d", getattr(nn, f"BatchNorm{d}d"), affine=1, batch_norm=True, refuse=_refuse_batch_norm)
        for d in (1, 2, 3)
    ),
    always_fp32("batch_norm", AnyBatchNorm, batch_norm=True, reason="the number of axes of its input is not known"),
    OpRow("layer_norm", nn.LayerNorm, affine=-1),
    OpRow("group_norm", nn.GroupNorm, affine=1),
    *(
        OpRow(f"instance_norm{d}d", getattr(nn, f"InstanceNorm{d}d"), affine=1, refuse=_refuse_instance_norm)
        for d in (1, 2, 3)
    ),
]
