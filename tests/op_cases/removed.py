"""Ops that do nothing, give sizes, or mark a region."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from .case import IMAGE, case, conv, normal, one

# What does nothing, gives sizes, or marks a region ------------------------------------------------------------

for _name, _rule, _do in (
    ("dropout", "dropout", lambda x: F.dropout(x, 0.5, False)),
    ("contiguous", "contiguous", lambda x: x.contiguous()),
    ("detach", "detach", lambda x: x.detach()),
    ("size", "size", lambda x: x.reshape(x.size(0), -1).reshape(x.size(0), 8, 10, -1)),
    ("dim", "dim", lambda x: x.flatten(1) if x.dim() is None else x),
    ("getattr", "getattr", lambda x: x.reshape(x.shape)),
):
    case(_name, _rule, lambda f=_do: one(lambda m, x, f=f: m["b"](f(m["a"](x))), a=conv(), b=conv()),  # type: ignore[misc]
         normal(*IMAGE), gone=True)  # fmt: skip
case("identity", "identity", lambda: nn.Sequential(conv(), nn.Identity(), conv()), gone=True)
case("dropout_module", "dropout", lambda: nn.Sequential(conv(), nn.Dropout(), conv()), gone=True)
# The scale factor is 0, so that what is dropped at random does not tell runs apart.
case("dropout_at_inference", "dropout",
     lambda: one(lambda m, x: m["a"](x) + 0.0 * F.dropout(m["a"](x), 0.5, True), a=conv()), int8=False)  # fmt: skip


def _stub(name: str) -> nn.Module:
    """What torch.ao's class of that name looks like to us, without importing it."""
    cls = type(name, (nn.Identity,), {"__module__": "torch.ao.quantization.stubs"})
    return cls()


for _stub_name, _rule in (("QuantStub", "quant_stub"), ("DeQuantStub", "dequant_stub")):
    case(_rule, _rule, lambda: nn.Sequential(conv(), _stub("QuantStub"), conv(), _stub("DeQuantStub"), conv()),
         gone=True)  # fmt: skip
