"""Shape and dtype of every value of a graph, found by running it once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..core.tensors import is_mask
from .sample import Batch
from .visitor import Visitor


@dataclass(frozen=True)
class ValueInfo:
    """What the tensor at a node was in one run: its shape and dtype, and whether it held -inf, as masks do."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    is_mask: bool = False

    @property
    def is_float(self) -> bool:
        return self.dtype.is_floating_point


def value_infos(gm: fx.GraphModule, batch: Batch) -> dict[fx.Node, ValueInfo]:
    """Shape and dtype of every node of ``gm`` that is a tensor, in one run on ``batch``.

    Raises:
        TypeError: ``batch`` does not fit forward().
    """
    found: dict[fx.Node, ValueInfo] = {}

    def see(node: fx.Node, value: Any) -> Any:
        if isinstance(value, Tensor):
            found[node] = ValueInfo(tuple(value.shape), value.dtype, is_mask(value))
        return value

    Visitor(gm, see).visit(batch)
    return found
