"""Reading a frozen graph: which op stands between which quantize and dequantize, as an :class:`Int8Call`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from ...compiler.qdq import dequantize, dequantize_channels, literal_qparams, quantize
from ...compiler.types import QParams
from ...compiler.values import attribute, run_values
from ..base import Frozen, IntegerWeight, OpRule, OpTable, Output
from ..units import Unit, clamp_bounds, match_units
from .calls import Candidate, Int8Call, Operand
from .kernels.fp32 import in_fp32


class FrozenGraph:
    """A frozen graph with what its nodes are.

    Attributes:
        values: shape and dtype of every value on the example.
        unit_of: the int8 unit that gives a value.
    """

    def __init__(self, frozen: Frozen, table: OpTable) -> None:
        self.gm, self.table = frozen.module, table
        self.modules = dict(self.gm.named_modules())
        self.values = run_values(self.gm, frozen.example_args, frozen.example_kwargs)
        self.order = {n: i for i, n in enumerate(self.gm.graph.nodes)}
        units = match_units(self.gm, table).units
        self.unit_of: dict[fx.Node, Unit] = {u.output: u for u in units if u.root not in frozen.fp32}

    def qparams(self, node: fx.Node) -> QParams | None:
        """Of a ``dequantize`` or ``quantize`` node; None for any other."""
        if node.target is dequantize and node.op == "call_function":
            node = node.args[0]  # type: ignore[assignment]
        if node.op != "call_function" or node.target is not quantize:
            return None
        return literal_qparams(node)

    def unrounded(self, pair: fx.Node) -> fx.Node | None:
        """What a ``dequantize`` was rounded from; None for any other node."""
        if self.qparams(pair) is None:
            return None
        quantized: fx.Node = pair.args[0]  # type: ignore[assignment]
        return quantized.args[0]  # type: ignore[return-value]

    def call(self, unit: Unit, out: QParams | None, inputs: tuple[fx.Node, ...] | None = None) -> Int8Call:
        """``unit`` as the kernels see it; ``inputs`` in place of its own, where something is fused."""
        root = unit.root
        nodes = unit.inputs if inputs is None else inputs
        operands = tuple(Operand(self.qparams(n), self.values[n].shape) for n in nodes)
        module = self.modules[str(root.target)] if root.op == "call_module" else None
        clamp = clamp_bounds(unit, self.table)
        bias = root.kwargs.get("bias")
        bias = self.buffer(bias) if bias is not None else None
        return Int8Call(unit.rule.name, root, operands, out, clamp, self.weight(root), bias, module)

    def weight(self, root: fx.Node) -> IntegerWeight | None:
        """The integer weight that ``root`` reads, if any."""
        for node in root.all_input_nodes:
            if node.op == "call_function" and node.target is dequantize_channels:
                integers, scale, zero_point, axis = node.args
                return IntegerWeight(self.buffer(integers), self.buffer(scale), self.buffer(zero_point), axis)  # type: ignore[arg-type]
        return None

    def buffer(self, node: Any) -> Tensor:
        """The tensor behind a ``get_attr`` node."""
        return attribute(self.gm, node)

    def candidates(self, rule: OpRule, call: Int8Call) -> list[Candidate]:
        """Every way to run ``call``: the row's kernels, and fp32 in between for an op without weights."""
        found = list(rule.kernels(call)) if rule.kernels else []
        if not rule.weighted and rule.output is not Output.SHARED:
            found.append(in_fp32(call))
        return found


def quantize_of(value: fx.Node) -> fx.Node | None:
    """The ``quantize`` that is the only reader of ``value``."""
    readers = list(value.users)
    if len(readers) == 1 and readers[0].op == "call_function" and readers[0].target is quantize:
        return readers[0]
    return None
