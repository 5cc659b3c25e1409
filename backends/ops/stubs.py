"""Marks in the captured graph for the QuantStubs of a model that was written for torch's eager workflow."""

from __future__ import annotations

from torch import Tensor


def quant_stub(x: Tensor) -> Tensor:
    """Mark the start of the quantized region. Returns ``x``."""
    return x


def dequant_stub(x: Tensor) -> Tensor:
    """Mark the end of the quantized region. Returns ``x``."""
    return x


# By class name: torch.ao is never imported.
STUBS = {"QuantStub": quant_stub, "DeQuantStub": dequant_stub}
