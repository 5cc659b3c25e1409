"""The account of a compilation: one row per op, and the totals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from tabulate import tabulate
from torch import Tensor, fx

from ..backends.dynamic import tensor_bytes
from .errors import user_line
from .overrides import module_path
from .types import QParams

COLUMNS = ("node", "op", "precision", "kernel", "scale/zero_point", "weights", "reason")


@dataclass(frozen=True)
class Row:
    """One op: ``node`` is its path, ``op`` includes what was fused into it, ``qparams`` are those of its output.

    ``precision`` is ``"int8"``, ``"int8 dynamic"`` (fp32 in and out), ``"fp16"`` (of the weights) or ``"fp32"``;
    ``kernel`` what runs it; ``reason`` why it is fp32 or fp16, or what kept a pattern from matching; ``line`` the
    user's code; ``fp32_bytes`` and ``compiled_bytes`` those of its parameters.
    """

    node: str
    op: str
    precision: str
    kernel: str
    qparams: QParams | None
    reason: str
    line: str | None
    fp32_bytes: int = 0
    compiled_bytes: int = 0

    @property
    def weights(self) -> str:
        """Its parameters' bytes before and after; "" where it has none."""
        return f"{_size(self.fp32_bytes)} -> {_size(self.compiled_bytes)}" if self.fp32_bytes else ""


@dataclass(frozen=True)
class Report:
    """All rows in order, bytes of parameters and buffers in fp32 and as compiled, and a ``remark`` on the whole."""

    rows: tuple[Row, ...]
    fp32_bytes: int
    compiled_bytes: int
    remark: str = ""

    @property
    def counts(self) -> dict[str, int]:
        """Number of ops by precision."""
        return dict(Counter(r.precision for r in self.rows))

    def in_fp32(self, reason: str) -> Report:
        """The report of the model with no op quantized; ``reason`` is that of the ops which are quantized here."""

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
        return f"{counts}; {sizes}{remark}\n" + tabulate(table, COLUMNS, maxcolwidths=widths)


def _size(size: int) -> str:
    return f"{size / 2**20:.2f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"


def parameter_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of ``tensors``."""
    return sum(map(tensor_bytes, tensors))


def row_name(node: fx.Node) -> str:
    """The path of the module that ``node`` is, or stands in; with its own name where it is no module."""
    path = module_path(node)
    own_module = path.replace(".", "_") == node.name.lstrip("_")
    return f"{path}:{node.name}" if path and not own_module and node.op != "call_module" else path or node.name


def make_row(
    node: fx.Node,
    op: str,
    precision: str,
    kernel: str,
    reason: str,
    qparams: QParams | None = None,
    sizes: tuple[int, int] = (0, 0),
) -> Row:
    """A row named after the module that ``node`` is, or stands in; ``sizes`` in bytes, before and after."""
    return Row(row_name(node), op, precision, kernel, qparams, reason, user_line(node.stack_trace), *sizes)
