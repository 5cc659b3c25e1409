"""Steps that read rows of a table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ...base.dynamic_spec import RoundedWeight
from ...base.weights import IntegerWeight
from ..codegen.isa import Isa
from ..kernels.gather import PAIR, Gather, RowKind
from .steps import Made, Step
from .values import Value
from .weights import Packed


@dataclass(frozen=True, eq=False)
class Table:
    """Rows as the kernel reads them.

    Attributes:
        rows: what a row holds.
        size: elements of a row.
        packed: [count, bytes of a row].
        count: of rows.
    """

    rows: RowKind
    size: int
    packed: Packed
    count: int

    @property
    def stride(self) -> int:
        """Bytes from one row to the next."""
        return self.packed.memory.numel() // self.count


@dataclass(eq=False)
class GatherStep(Step):
    """Rows of a table, or sums or means of bags of them. Its target is contiguous.

    Attributes:
        indices: int64, contiguous; the last axis is that of a bag, unless each index stands for itself.
        padding: an index that counts for nothing in a bag; -1: none.
    """

    indices: Value = field(kw_only=True)
    table: Table = field(kw_only=True)
    mode: Literal["one", "sum", "mean"] = field(kw_only=True)
    padding: int = field(kw_only=True, default=-1)

    @property
    def sources(self) -> list[Value]:
        return [self.indices]

    def make(self, isa: Isa) -> Made:
        table = self.table
        bags = self.target.numel // table.size
        kernel = Gather(
            table.rows, table.size, table.stride, self.mode, bags, self.indices.numel // bags, self.padding, isa
        )
        return Made(kernel, (self.indices, table.packed, self.target))


def table_of(weight: RoundedWeight, place: Any) -> Table:
    """The rows of a weight [count, size]; ``place`` puts bytes to where they stay."""
    count, size = weight.integers.shape if isinstance(weight, IntegerWeight) else weight.shape
    rows = row_kind(weight)
    if isinstance(weight, IntegerWeight):
        return Table(rows, size, Packed(place(_packed(weight, rows))), count)
    raw = weight.contiguous().view(torch.uint8).view(-1)
    whole = size % PAIR == 0  # else the kernel reads past the last row
    return Table(rows, size, Packed(raw if whole else place(raw)), count)


def row_kind(weight: RoundedWeight) -> RowKind:
    """What the rows of a weight are packed to: 4 bits where its integers fit them."""
    if not isinstance(weight, IntegerWeight):
        return "f16" if weight.dtype == torch.float16 else "f32"
    return "s4" if weight.fits_four_bits else "s8"


def row_bytes(rows: RowKind, size: int) -> int:
    """Bytes of a row."""
    if rows in ("f32", "f16"):
        return size * (4 if rows == "f32" else 2)
    return (PAIR * -(-size // (2 * PAIR)) if rows == "s4" else 4 * -(-size // 4)) + 8


def _packed(weight: IntegerWeight, rows: RowKind) -> Tensor:
    """Rows of integers with their scale and zero point: uint8 [count, bytes]."""
    count, size = weight.integers.shape
    width = row_bytes(rows, size) - 8
    integers = torch.nn.functional.pad(weight.integers, (0, width * (2 if rows == "s4" else 1) - size))
    if rows == "s4":
        low, high = (integers + 8).view(torch.uint8).unflatten(1, (-1, 2, PAIR)).unbind(2)
        packed = (low | (high << 4)).flatten(1)
    else:
        packed = integers.view(torch.uint8)
    ends = (weight.scale.float(), weight.zero_point.float())
    return torch.cat([packed, *(t.expand(count).contiguous().view(torch.uint8).view(count, 4) for t in ends)], 1)


def has_equal_bags(layer: Any, axes: int) -> bool:
    """Whether indices of so many axes are bags of one size for an ``nn.EmbeddingBag``, without offsets."""
    return axes == 2 and not layer.include_last_offset


def check_indices(indices: Tensor, count: int) -> Tensor:
    """Indices of a table with ``count`` rows.

    Raises:
        IndexError: there is no such row.
        RuntimeError: they are no integers.
    """
    if indices.dtype not in (torch.int64, torch.int32):
        raise RuntimeError(f"Indices of an embedding must be int64 or int32, got {indices.dtype}.")
    if not indices.numel():
        return indices
    least, largest = map(int, indices.aminmax())
    if least < 0 or largest >= count:
        raise IndexError(f"index out of range in self: {least if least < 0 else largest}, of {count} rows")
    return indices
