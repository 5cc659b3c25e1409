"""Ops that do nothing at inference, and the marks of the user's QuantStubs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ...base.op import Call
from ..stubs import dequant_stub, quant_stub
from .kinds import always_fp32

_DROPOUTS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, F.dropout1d, F.dropout2d, F.dropout3d)


def _always(call: Call) -> bool:
    return True


def _at_inference(call: Call) -> bool:
    """Dropout: a module is in eval mode; the function drops values whenever it is told to."""
    return call.module is not None or not call.param("training", True) or call.param("p", 0.5) == 0


ROWS = [
    always_fp32("identity", nn.Identity, views=True, noop=_always, reason="does nothing"),
    always_fp32("dropout", F.dropout, (nn.Dropout, nn.AlphaDropout, *_DROPOUTS), "p training", views=True,
                noop=_at_inference, reason="drops values at random, also at inference"),
    always_fp32("contiguous", "contiguous", views=True, noop=_always, reason="does nothing"),
    always_fp32("detach", torch.detach, ("detach",), views=True, noop=_always, reason="does nothing"),
    always_fp32("quant_stub", quant_stub, views=True, scale_equivariant=True, reason="start of the quantized region"),
    always_fp32("dequant_stub", dequant_stub, views=True, scale_equivariant=True, reason="end of the quantized region"),
]  # fmt: skip
