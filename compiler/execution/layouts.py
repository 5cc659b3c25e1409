"""The memory layout of outputs: a reader may need it, as ``.view()`` does."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..core.tensors import map_tensors, tensors_of
from .sample import Batch
from .stepper import Stepper

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the number of axes


@dataclass(frozen=True)
class OutputLayouts:
    """The memory formats of all outputs of a graph; None: neither contiguous nor channels_last, left as they are.

    Attributes:
        plain: for contiguous inputs.
        channels_last: for images in channels_last.
    """

    plain: tuple[torch.memory_format | None, ...]
    channels_last: tuple[torch.memory_format | None, ...]

    @staticmethod
    def of(gm: fx.GraphModule, batch: Batch) -> OutputLayouts | None:
        """Those of ``gm``, found by running it on ``batch``; None if there is nothing to convert."""
        plain = channels_last = _formats(gm, batch, channels_last=False)
        if not any(plain):
            return None
        with contextlib.suppress(Exception):  # a .view() of the model may need contiguous inputs
            channels_last = _formats(gm, batch, channels_last=True)
        return OutputLayouts(plain, channels_last)

    def applied(self, outputs: Any, inputs: Sequence[Any]) -> Any:
        """``outputs`` in the layouts that belong to ``inputs``."""
        images = [x for x in inputs if isinstance(x, Tensor) and x.dim() in FORMATS]
        formats = iter(self.channels_last if any(map(_is_channels_last, images)) else self.plain)

        def convert(output: Tensor) -> Tensor:
            wanted = next(formats, None)
            return output if wanted is None else output.contiguous(memory_format=wanted)

        return map_tensors(outputs, convert)


def _formats(gm: fx.GraphModule, batch: Batch, channels_last: bool) -> tuple[torch.memory_format | None, ...]:
    def convert(x: Tensor) -> Tensor:
        if x.dim() not in FORMATS:
            return x
        return x.contiguous(memory_format=FORMATS[x.dim()] if channels_last else torch.contiguous_format)

    return tuple(map(_format, tensors_of(Stepper(gm, [map_tensors(batch, convert)]).finish())))


def _is_channels_last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=FORMATS[x.dim()])


def _format(output: Tensor) -> torch.memory_format | None:
    if output.is_contiguous():
        return torch.contiguous_format
    if output.dim() not in FORMATS:
        return None
    return FORMATS[output.dim()] if output.is_contiguous(memory_format=FORMATS[output.dim()]) else None
