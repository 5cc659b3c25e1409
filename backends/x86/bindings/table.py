"""All bindings by the name of the op. An op that is missing has no int8 kernel in torch on x86."""

from __future__ import annotations

from collections.abc import Mapping

from . import pointwise, shapes, weighted
from .binding import X86Binding

BINDINGS: Mapping[str, X86Binding] = {**weighted.BINDINGS, **pointwise.BINDINGS, **shapes.BINDINGS}
