"""The report of a static quantization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from ...backends.base.backend import KernelChoice, Lowered, binding_of
from ...backends.base.frozen_nodes import is_dequantize, literal_qparams, quantize_behind
from ...backends.base.op import Output
from ...backends.base.program import FrozenProgram
from ...backends.ops.table import OPS
from ...backends.ops.units import Unit
from ...passes.analysis.assignment import Assignment
from ...passes.dynamic.plan import LayerPlan
from ..core.tensors import total_bytes
from ..execution.graphs import attribute, called_module
from .layer_rows import layer_rows
from .report import Report, Row
from .rows import make_row

FP32_IS_BETTER = "int8 is not faster here, or gains too little for what it costs in accuracy"


class StaticReport:
    """Makes the report of a lowered program.

    Args:
        program: the program, for whose nodes the other arguments are.
        assignment: the precision of each op.
        plan: the layers with fp32 input and output.
        lowered: what runs each op.
        notes: what passes say, by node.
    """

    def __init__(
        self,
        program: FrozenProgram,
        assignment: Assignment,
        plan: LayerPlan,
        lowered: Lowered,
        notes: Mapping[fx.Node, str],
    ) -> None:
        self.gm, self.assignment, self.plan = program.module, assignment, plan
        self.lowered, self.notes = lowered, notes
        self.modules = dict(self.gm.named_modules())
        self.executed = dict(lowered.executed.module.named_modules())

    def make(self, fp32_bytes: int, remark: str = "") -> Report:
        """Rows of all ops that compute something; ``fp32_bytes`` are those of the float model."""
        units = {u.root: u for u in self.assignment.matched.units}
        inner = {n for u in self.assignment.matched.units for n in u.nodes[1:]}
        rows: list[Row] = []
        for node in self.gm.graph.nodes:
            unit, path = units.get(node), str(node.target)
            if node.op == "call_module" and self.plan.inside(path):
                rows += layer_rows(path, self.executed[path], self.plan, node, self.notes.get(node, ""))
            elif unit is not None:
                rows.append(self._unit_row(unit))
            elif node not in inner and OPS.of(node, self.modules) is None and self._computes(node):
                rows.append(self._unknown_row(node))
        return Report(tuple(rows), fp32_bytes, self.lowered.weight_bytes, remark)

    def _computes(self, node: fx.Node) -> bool:
        """Whether ``node`` makes tensors of tensors."""
        if node.op not in ("call_function", "call_method", "call_module"):
            return False
        values = self.assignment.values
        reads_tensor = any(n in values or is_dequantize(n) for n in node.all_input_nodes)
        return reads_tensor and (node in values or any(u in values for u in node.users))

    def _unknown_row(self, node: fx.Node) -> Row:
        """The row of an op that has none in the op table."""
        module = called_module(node, self.modules)
        name = type(module).__name__ if module else str(getattr(node.target, "__name__", node.target))
        reason = f"fxquant does not know the op {name}"
        if isinstance(module, nn.TransformerEncoder) and module.use_nested_tensor:
            reason = "it packs padded sequences, which cannot be captured: build it with enable_nested_tensor=False"
        elif module is not None and any(map(self._has_dynamic_form, module.modules())):
            reason = "a leaf module, which is not traced; the overrides 'dynamic' and 'fp16' are for the layers in it"
        size = total_bytes(module.parameters()) if module else 0
        return make_row(node, name, "fp32", "", reason, sizes=(size, size))

    def _has_dynamic_form(self, module: nn.Module) -> bool:
        row = OPS.find(type(module))
        return row is not None and binding_of(self.assignment.backend, row).dynamic is not None

    def _unit_row(self, unit: Unit) -> Row:
        remarks = [self.notes[n] for n in unit.nodes if n in self.notes]
        if not self.assignment.is_int8(unit):
            layer = self.gm.get_submodule(str(unit.root.target)) if unit.root.op == "call_module" else None
            size = total_bytes(layer.parameters()) if layer is not None else 0
            reason = "; ".join([self.assignment.reasons[unit.root], *remarks])
            return make_row(unit.root, unit.name, "fp32", "", reason, sizes=(size, size))
        bits = self.assignment.config_of(unit).weight_bits
        if unit.row.weighted and bits < 8:
            remarks.append(f"weights of {bits} bits")
        output = self.lowered.of[unit.output]
        rounded = quantize_behind(output)
        if unit.row.output is Output.WEIGHT_ONLY:
            remarks.append("only the weight is int8: the op looks rows up")
        elif rounded is None and not unit.row.multiple and unit.row.output is not Output.SHARED:
            fused = any(self._choice(u).fused_into for u in output.users)
            remarks.append("output in fp32: " + ("fused into its reader" if fused else "no int8 reader"))
        choice = self._choice(self.lowered.of[unit.root])
        if choice.precision == "fp32":
            remarks.insert(0, self.assignment.binding(unit).reason or FP32_IS_BETTER)
        kernel = f"fused into '{choice.fused_into}'" if choice.fused_into else choice.kernel
        known = literal_qparams(rounded) if rounded is not None else None
        return make_row(unit.root, unit.name, choice.precision, kernel, "; ".join(remarks), known, self._sizes(unit))

    def _choice(self, executed: fx.Node) -> KernelChoice:
        return self.lowered.choices.get(executed, KernelChoice(""))

    def _sizes(self, unit: Unit) -> tuple[int, int]:
        """Bytes of the parameters of an int8 layer in fp32, and as integers with their fp32 scales and bias."""
        if not unit.row.weighted:
            return 0, 0
        weight: Any = unit.root.args[1]
        integers, scale = (attribute(self.gm, part) for part in weight.all_input_nodes[:2])
        bias = unit.root.kwargs.get("bias")
        rest = attribute(self.gm, bias).numel() if isinstance(bias, fx.Node) else 0
        return 4 * (integers.numel() + rest), integers.numel() + 4 * (scale.numel() + rest)
