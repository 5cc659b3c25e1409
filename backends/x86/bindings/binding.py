"""What an op is bound to in this backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...base.binding import Binding
from ..kernels.calls import Kernels


@dataclass(frozen=True)
class X86Binding(Binding):
    """An op with its kernels.

    Attributes:
        kernels: gives the candidates for a call; None for an op that works on integers as they are.
        copies: of an op on integers: it gets a copy of its input in channels_last. Its kernel mistakes the layout of an
            image of one pixel, whose strides fit any.
        fused: the same for the op with another after it, by the name of that op; nothing is rounded between them.
    """

    kernels: Kernels | None = None
    copies: bool = False
    fused: Mapping[str, Kernels] = field(default_factory=dict)
