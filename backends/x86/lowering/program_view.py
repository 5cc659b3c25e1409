"""Reading a frozen program: which op is between which quantize and dequantize, as an :class:`Int8Call`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx

from ....compiler.core.qparams import QParams
from ....compiler.execution.graphs import attribute, called_module
from ....compiler.execution.shapes import ValueInfo
from ....compiler.numerics.quantize import dequantize_channels
from ...base.frozen_nodes import is_quantize, pair_qparams
from ...base.op import Output
from ...base.program import FrozenProgram
from ...base.weights import IntegerWeight
from ...ops.units import Unit, clamp_bounds, match_units
from ..bindings.binding import X86Binding
from ..bindings.table import BINDINGS
from ..kernels.calls import Candidate, Int8Call, Operand
from ..kernels.fp32 import in_fp32

NO_KERNELS = X86Binding(False)


class ProgramView:
    """A frozen program with what its nodes are.

    Args:
        program: the program.
        values: shape and dtype of every value, if they are not to be measured: dropping a pair changes none.

    Attributes:
        gm: the graph; a rewrite of it makes a new view necessary.
        values: shape and dtype of every value on the example.
        order: the place of each node.
        unit_of: the int8 unit that gives a value.
    """

    def __init__(self, program: FrozenProgram, values: Mapping[fx.Node, ValueInfo] | None = None) -> None:
        self.gm = program.module
        self.modules = dict(self.gm.named_modules())
        self.values = program.values if values is None else values
        self.order = {n: i for i, n in enumerate(self.gm.graph.nodes)}
        units = match_units(self.gm).units
        self.unit_of: dict[fx.Node, Unit] = {u.output: u for u in units if u.root not in program.fp32}

    def unrounded(self, pair: fx.Node) -> fx.Node | None:
        """What a ``dequantize`` was rounded from; None for any other node."""
        if pair_qparams(pair) is None:
            return None
        quantized: fx.Node = pair.args[0]  # type: ignore[assignment]
        return quantized.args[0]  # type: ignore[return-value]

    def call(self, unit: Unit, out: QParams | None, inputs: tuple[fx.Node, ...] | None = None) -> Int8Call:
        """``unit`` as its kernels see it. ``inputs`` replace its own if another op is fused."""
        root = unit.root
        nodes = unit.inputs if inputs is None else inputs
        operands = tuple(Operand(pair_qparams(n), self.values[n].shape) for n in nodes)
        module = called_module(root, self.modules)
        bias = root.kwargs.get("bias")
        bias = self.buffer(bias) if bias is not None else None
        return Int8Call(unit.row.name, root, operands, out, clamp_bounds(unit), self.weight(root), bias, module)

    def weight(self, root: fx.Node) -> IntegerWeight | None:
        """The integer weight that ``root`` reads, if any."""
        for node in root.all_input_nodes:
            if node.op == "call_function" and node.target is dequantize_channels:
                integers, scale, zero_point, axis = node.args
                return IntegerWeight(self.buffer(integers), self.buffer(scale), self.buffer(zero_point), axis)  # type: ignore[arg-type]
        return None

    def buffer(self, node: Any) -> Tensor:
        """The tensor of a ``get_attr`` node."""
        return attribute(self.gm, node)

    def candidates(self, unit: Unit, call: Int8Call) -> list[Candidate]:
        """Every way to run ``call``: the kernels of ``unit``, and fp32 for an op without weights or without kernels."""
        kernels = binding(unit).kernels
        found = list(kernels(call)) if kernels else []
        if unit.row.output is not Output.SHARED and not (unit.row.weighted and found):
            found.append(in_fp32(call))
        return found


def binding(unit: Unit) -> X86Binding:
    """The kernels of ``unit``."""
    return BINDINGS.get(unit.row.name, NO_KERNELS)


def only_quantize(value: fx.Node) -> fx.Node | None:
    """The ``quantize`` that is the only reader of ``value``."""
    readers = list(value.users)
    return readers[0] if len(readers) == 1 and is_quantize(readers[0]) else None
