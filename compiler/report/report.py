"""The report of a compilation: one row per op, and the totals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from tabulate import tabulate

from ..core.qparams import QParams

COLUMNS = ("node", "op", "precision", "kernel", "scale/zero_point", "weights", "reason")

Precision = Literal["int8", "int8 dynamic", "fp16", "fp32"]


@dataclass(frozen=True)
class Row:
    """One op.

    Attributes:
        node: the path of the op.
        op: its name, and those of the ops that are fused into it.
        precision: ``"int8"``, ``"int8 dynamic"`` (fp32 input and output), ``"fp16"`` (weights) or ``"fp32"``.
        kernel: what runs it.
        qparams: of its output; None if it is not quantized.
        reason: why it is fp32 or fp16, and what passes did to it or could not do.
        line: file, line and code of the call in your model; None if unknown.
        fp32_bytes, compiled_bytes: bytes of its parameters, before and after.
    """

    node: str
    op: str
    precision: Precision
    kernel: str
    qparams: QParams | None
    reason: str
    line: str | None
    fp32_bytes: int = 0
    compiled_bytes: int = 0

    @property
    def weights(self) -> str:
        """Bytes of its parameters before and after; "" if it has none."""
        return f"{_size(self.fp32_bytes)} -> {_size(self.compiled_bytes)}" if self.fp32_bytes else ""


@dataclass(frozen=True)
class Report:
    """All rows in order, and totals. Print it for a table.

    Attributes:
        fp32_bytes, compiled_bytes: bytes of all parameters and buffers, before and after.
        remark: a note on the whole model.
        islands: why modules stay Python, by path; "" is the model itself.
    """

    rows: tuple[Row, ...]
    fp32_bytes: int
    compiled_bytes: int
    remark: str = ""
    islands: Mapping[str, str] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """Number of ops by precision."""
        return dict(Counter(r.precision for r in self.rows))

    @property
    def quantized_share(self) -> float:
        """The share of the bytes of parameters that are in layers with quantized weights."""
        sizes = [(row.precision != "fp32", row.fp32_bytes) for row in self.rows]
        return sum(size for quantized, size in sizes if quantized) / max(sum(size for _, size in sizes), 1)

    def in_fp32(self, reason: str) -> Report:
        """The same report with all ops in fp32; ``reason`` replaces that of each op that was quantized."""

        def plain(row: Row) -> Row:
            row = replace(row, kernel="", qparams=None, compiled_bytes=row.fp32_bytes)
            return row if row.precision == "fp32" else replace(row, precision="fp32", reason=reason)

        return replace(self, rows=tuple(map(plain, self.rows)), compiled_bytes=self.fp32_bytes)

    def __str__(self) -> str:
        counts = ", ".join(f"{n} ops {p}" for p, n in sorted(self.counts.items(), reverse=True))
        sizes = f"parameters {_size(self.fp32_bytes)} fp32 -> {_size(self.compiled_bytes)}"
        table = [(r.node, r.op, r.precision, r.kernel, str(r.qparams or ""), r.weights, r.reason) for r in self.rows]
        widths = [36, None, None, 44, None, None, 60]
        remark = f"; {self.remark}" if self.remark else ""
        if self.islands:
            remark += f"; {self.quantized_share:.0%} of the weights are quantized"
        islands = "".join(f"{path or 'the model'} stays Python: {reason}\n" for path, reason in self.islands.items())
        return f"{counts}; {sizes}{remark}\n{islands}" + tabulate(table, COLUMNS, maxcolwidths=widths)


def _size(size: int) -> str:
    return f"{size / 2**20:.2f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"
