"""Marks that the QuantStubs of a model written for torch's eager workflow leave in the captured graph."""

from __future__ import annotations

from torch import Tensor


def quant_stub(x: Tensor) -> Tensor:
    """Behind it the quantized region begins. Returns ``x``."""
    return x


def dequant_stub(x: Tensor) -> Tensor:
    """Before it the quantized region ends. Returns ``x``."""
    return x


# torch.ao is never imported: its classes are known by their names.
STUBS = {"QuantStub": quant_stub, "DeQuantStub": dequant_stub}
