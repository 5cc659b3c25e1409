"""All rows. See :class:`~fxquant.backends.base.op.OpRow` for the columns."""

from __future__ import annotations

from ..base.op import OpTable
from .rows import activations, arithmetic, markers, norms, pools, shapes, weighted

OPS = OpTable([row for kind in (weighted, norms, arithmetic, activations, pools, shapes, markers) for row in kind.ROWS])
