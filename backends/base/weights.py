"""Integer weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...compiler.core.tensors import tensor_bytes
from ...compiler.numerics.quantize import dequantize_channels


@dataclass(frozen=True)
class IntegerWeight:
    """A quantized weight.

    Attributes:
        integers: int8, in the shape of the weight.
        scale, zero_point: one entry per index of ``axis``, or a single entry for the whole weight; or
            [outputs, blocks], one for each block of inputs of each output.
        axis: the axis of the output channels.
    """

    integers: Tensor
    scale: Tensor
    zero_point: Tensor
    axis: int

    @property
    def blocks(self) -> int:
        """How many scales an output channel has."""
        return self.scale.shape[1] if self.scale.dim() == 2 else 1

    @property
    def fits_four_bits(self) -> bool:
        """Whether all integers are from -8 to 7."""
        low, high = self.integers.aminmax()
        return int(low) >= -8 and int(high) <= 7

    @property
    def bytes(self) -> int:
        """Bytes of the integers and of the fp32 scales."""
        return tensor_bytes(self.integers) + 4 * self.scale.numel()

    def fingerprint(self) -> int:
        """Equal for equal weights, in this process."""
        parts = (self.integers, self.scale, self.zero_point)
        return hash(
            (tuple(self.integers.shape), self.axis, self.blocks, *(t.contiguous().numpy().tobytes() for t in parts))
        )

    def dequantized(self) -> Tensor:
        """The fp32 values of the integers; weights of images are in channels_last."""
        rows = self.integers
        if self.blocks > 1:
            rows = rows.reshape(self.scale.numel(), -1)
        values = dequantize_channels(rows, self.scale, self.zero_point, self.axis).view(self.integers.shape)
        return values.contiguous(memory_format=torch.channels_last) if values.dim() == 4 else values
