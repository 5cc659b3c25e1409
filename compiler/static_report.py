"""The account of a static quantization."""

from __future__ import annotations

from torch import fx

from ..backends.base import Lowered, OpTable, Output
from ..backends.units import Unit, unit_name
from ..passes.assign_precision import Assignment
from ..passes.dynamic import LayerPlan
from .layer_rows import layer_rows
from .qdq import dequantize, literal_qparams, quantize_behind
from .report import Report, Row, make_row, parameter_bytes
from .values import attribute


def static_report(
    gm: fx.GraphModule,
    table: OpTable,
    assignment: Assignment,
    layers: LayerPlan,
    lowered: Lowered,
    notes: dict[fx.Node, str],
    fp32_bytes: int,
) -> Report:
    """Rows of all ops that compute something; ``layers`` take and give fp32, ``notes`` are refusals of passes."""
    owner = {u.root: u for u in assignment.matched.units}
    inner = {n for u in assignment.matched.units for n in u.nodes[1:]}
    modules = dict(gm.named_modules())
    rows: list[Row] = []
    for node in gm.graph.nodes:
        unit, path = owner.get(node), str(node.target)
        if node.op == "call_module" and any(f"{p}.".startswith(f"{path}.") for p in layers.wishes):
            rows += layer_rows(path, modules[path], layers, table, node, notes.get(node, ""))
        elif unit is not None:
            rows.append(_unit_row(unit, gm, table, assignment, lowered, notes))
        elif node not in inner and table.of(node, modules) is None and _computes(node, assignment):
            module = modules[path] if node.op == "call_module" else None
            name = type(module).__name__ if module else str(getattr(node.target, "__name__", node.target))
            reason = f"no rule for {name}: fxquant does not know this op"
            inside = module.modules() if module else ()
            if any((rule := table.find(type(m))) is not None and rule.dynamic is not None for m in inside):
                reason = "kept whole; the overrides 'dynamic' and 'fp16' are for the layers in it"
            size = parameter_bytes(module.parameters()) if module else 0
            rows.append(make_row(node, name, "fp32", "", reason, sizes=(size, size)))
    return Report(tuple(rows), fp32_bytes, lowered.weight_bytes)


def _computes(node: fx.Node, assignment: Assignment) -> bool:
    """Whether ``node`` is an op that makes tensors of tensors (alone or in a tuple)."""
    if node.op not in ("call_function", "call_method", "call_module"):
        return False
    values = assignment.values
    reads_tensor = any(n in values or n.target is dequantize for n in node.all_input_nodes)
    return reads_tensor and (node in values or any(u in values for u in node.users))


def _unit_row(
    unit: Unit,
    gm: fx.GraphModule,
    table: OpTable,
    assignment: Assignment,
    lowered: Lowered,
    notes: dict[fx.Node, str],
) -> Row:
    op = unit_name(unit, table)
    remarks = [notes[n] for n in unit.nodes if n in notes]
    if not assignment.is_int8(unit):
        layer = gm.get_submodule(str(unit.root.target)) if unit.root.op == "call_module" else None
        size = parameter_bytes(layer.parameters()) if layer is not None else 0
        reason = "; ".join([assignment.reasons[unit.root], *remarks])
        return make_row(unit.root, op, "fp32", "", reason, sizes=(size, size))
    bits = assignment.config_of(unit).weight_bits
    if unit.rule.weighted and bits < 8:
        remarks.append(f"weights of {bits} bits")
    out = quantize_behind(unit.output)
    known = literal_qparams(out) if out is not None else None
    if unit.rule.output is Output.WEIGHT_ONLY:
        remarks.append("weight only: it looks rows up")
    elif out is None and not unit.rule.multiple and unit.rule.output is not Output.SHARED:
        remarks.append("output in fp32: " + ("fused into its reader" if _is_fused(unit, lowered) else "no int8 reader"))
    kernel = lowered.kernels.get(unit.root, "")
    if kernel.startswith("fp32"):
        remarks.insert(0, unit.rule.reason or "measured: int8 would gain little here and cost accuracy")
    precision = "fp32" if kernel.startswith("fp32") else "int8"
    return make_row(unit.root, op, precision, kernel, "; ".join(remarks), known, _sizes(unit, gm))


def _is_fused(unit: Unit, lowered: Lowered) -> bool:
    return any(lowered.kernels.get(u, "").startswith("fused into") for u in unit.output.users)


def _sizes(unit: Unit, gm: fx.GraphModule) -> tuple[int, int]:
    """Bytes of an int8 layer's parameters in fp32, and as integers with their fp32 scales and bias."""
    if not unit.rule.weighted:
        return 0, 0
    weight: fx.Node = unit.root.args[1]  # type: ignore[assignment]
    integers, scale = (attribute(gm, part) for part in weight.all_input_nodes[:2])
    bias = unit.root.kwargs.get("bias")
    rest = attribute(gm, bias).numel() if isinstance(bias, fx.Node) else 0
    return 4 * (integers.numel() + rest), integers.numel() + 4 * (scale.numel() + rest)
