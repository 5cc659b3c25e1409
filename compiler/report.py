"""The account of a compilation: one row per op, and the totals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tabulate import tabulate
from torch import Tensor, fx

from ..backends.base import Lowered, OpTable, Output
from ..backends.units import Unit
from ..passes.assign_precision import Assignment
from .errors import user_line
from .overrides import module_path
from .qdq import dequantize, quantize
from .types import QParams

COLUMNS = ("node", "op", "precision", "kernel", "scale/zero_point", "weights", "reason")
FUSED = " + "


@dataclass(frozen=True)
class Row:
    """One op: ``node`` is its path, ``op`` includes what was fused into it, ``qparams`` are those of its output.

    ``precision`` is ``"int8"``, ``"int8 dynamic"`` (fp32 in and out), ``"fp16"`` (of the weights) or ``"fp32"``;
    ``kernel`` what runs it; ``reason`` why it is fp32, or what kept a pattern from matching; ``line`` the user's code;
    ``fp32_bytes`` and ``compiled_bytes`` those of its parameters.
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
    """All rows in order, bytes of parameters in fp32 and as compiled, and a ``remark`` on the whole."""

    rows: tuple[Row, ...]
    fp32_bytes: int
    compiled_bytes: int
    remark: str = ""

    @property
    def counts(self) -> dict[str, int]:
        """Number of ops by precision."""
        return dict(Counter(r.precision for r in self.rows))

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
    return sum(t.numel() * t.element_size() for t in tensors)


def build_report(
    gm: fx.GraphModule,
    table: OpTable,
    assignment: Assignment,
    lowered: Lowered,
    notes: dict[fx.Node, str],
    fp32_bytes: int,
) -> Report:
    """Rows of all ops that compute something; ``notes`` are refusals of passes."""
    owner = {u.root: u for u in assignment.matched.units}
    inner = {n for u in assignment.matched.units for n in u.nodes[1:]}
    modules = dict(gm.named_modules())
    rows = []
    for node in gm.graph.nodes:
        unit = owner.get(node)
        if unit is not None:
            rows.append(_unit_row(unit, table, assignment, lowered, notes))
        elif node not in inner and table.of(node, modules) is None and _computes(node, assignment):
            module = modules[str(node.target)] if node.op == "call_module" else None
            name = type(module).__name__ if module else str(getattr(node.target, "__name__", node.target))
            rows.append(make_row(node, name, "fp32", "", f"no rule for {name}: fxquant does not know this op"))
    return Report(tuple(rows), fp32_bytes, lowered.weight_bytes)


def _computes(node: fx.Node, assignment: Assignment) -> bool:
    """Whether ``node`` is an op that makes tensors of tensors (alone or in a tuple)."""
    if node.op not in ("call_function", "call_method", "call_module"):
        return False
    values = assignment.values
    reads_tensor = any(n in values or n.target is dequantize for n in node.all_input_nodes)
    return reads_tensor and (node in values or any(u in values for u in node.users))


def _unit_row(unit: Unit, table: OpTable, assignment: Assignment, lowered: Lowered, notes: dict[fx.Node, str]) -> Row:
    names = [unit.rule.name, *(r.name for n in unit.nodes[1:] if (r := table.of(n, {})) is not None)]
    op = FUSED.join(names)
    remarks = [notes[n] for n in unit.nodes if n in notes]
    if not assignment.is_int8(unit):
        return make_row(unit.root, op, "fp32", "", "; ".join([assignment.reasons[unit.root], *remarks]))
    out = next((u for u in unit.output.users if u.target is quantize), None)
    known = QParams(*out.args[1:5]) if out is not None else None  # type: ignore[arg-type]
    if unit.rule.output is Output.WEIGHT_ONLY:
        remarks.append("weight only: it looks rows up")
    elif out is None and not unit.rule.multiple and unit.rule.output is not Output.SHARED:
        remarks.append("output in fp32: " + ("fused into its reader" if _is_fused(unit, lowered) else "no int8 reader"))
    kernel = lowered.kernels.get(unit.root, "")
    if kernel.startswith("fp32"):
        remarks.insert(0, unit.rule.reason or "measured: int8 would gain little here and cost accuracy")
    precision = "fp32" if kernel.startswith("fp32") else "int8"
    return make_row(unit.root, op, precision, kernel, "; ".join(remarks), known)


def _is_fused(unit: Unit, lowered: Lowered) -> bool:
    return any(lowered.kernels.get(u, "").startswith("fused into") for u in unit.output.users)


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
    path = module_path(node)
    own_module = path.replace(".", "_") == node.name.lstrip("_")
    name = f"{path}:{node.name}" if path and not own_module and node.op != "call_module" else path or node.name
    return Row(name, op, precision, kernel, qparams, reason, user_line(node.stack_trace), *sizes)
