"""Rows with common columns filled in."""

from __future__ import annotations

from functools import partial

from ...base.op import OpRow, Output

observed = partial(OpRow, output=Output.OBSERVED, saturates=True)
shared = partial(OpRow, output=Output.SHARED, scale_equivariant=True)
view = partial(shared, views=True)
always_fp32 = partial(OpRow, output=Output.FLOAT)
size = partial(OpRow, output=Output.META)
