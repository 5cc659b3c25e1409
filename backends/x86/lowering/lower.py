"""Lowering: a walk over the program that emits int8 kernels, and fp32 ops where there are none."""

from __future__ import annotations

from functools import partial

import torch
from torch import fx
from torch.fx.node import map_arg

from ....compiler.core.progress import progress
from ....compiler.numerics.quantize import dequantize_channels
from ...base.backend import KernelChoice
from ...base.frozen_nodes import is_dequantize, is_quantize, pair_qparams
from ...base.op import Output
from ...ops.table import OPS
from ...ops.units import Unit
from ..codegen.emitter import Emitter
from ..kernels.calls import Candidate, Int8Call
from ..kernels.fp32 import FP32_ENTRY
from ..tuning.tuner import Tuner
from .fuse import fused_call
from .program_view import ProgramView, binding


class Lowering:
    """One lowering of one program.

    Attributes:
        emitter: the lowered graph.
        int8: the quint8 node that holds a value of the program exactly.
        choices: what runs each node of the program that has a kernel.
    """

    def __init__(self, view: ProgramView, tuner: Tuner, deterministic: bool) -> None:
        self.view, self.tuner, self.deterministic = view, tuner, deterministic
        self.emitter = Emitter()
        self.int8: dict[fx.Node, fx.Node] = {}
        self.choices: dict[fx.Node, KernelChoice] = {}
        self._float: dict[fx.Node, fx.Node] = {}
        self._unrounded: dict[fx.Node, fx.Node] = {}  # quantize -> the fp32 node that it rounds, computed in fp32

    def emit(self) -> None:
        """Emit every node of the program."""
        nodes = list(self.view.gm.graph.nodes)
        for node in progress(nodes, "choose kernels", "op", len(nodes)):
            if is_quantize(node):
                self.int8[node] = self._quantize(node)
            elif is_dequantize(node):
                self.int8[node] = self.int8[node.args[0]]
            elif not self._pass_through(node):
                self._emit_float(node)

    def _quantize(self, node: fx.Node) -> fx.Node:
        """The int8 value of a ``quantize``: the output of a kernel, or its fp32 value quantized."""
        value: fx.Node = node.args[0]  # type: ignore[assignment]
        if value in self.int8:
            return self.int8[value]
        unit = self.view.unit_of.get(value)
        first = self._fused_into(unit) if unit is not None else None
        call = self._int8_call(unit, node, first) if unit is not None else None
        if unit is None or call is None:
            known = pair_qparams(node)
            assert known is not None
            self._unrounded[node] = self._as_float(value)
            return self.emitter.quantize(self._unrounded[node], known, self._is_image(value))
        nodes, candidates = unit.inputs, self._candidates(unit, call, first)
        if first is not None:
            before, link = first
            self.choices[unit.root] = KernelChoice("", fused_into=before.root.name)
            nodes = (*before.inputs, *(n for n in unit.inputs if n is not link))
        best = self.tuner.best(call, candidates, self.deterministic)
        self._choose(call.node, best)
        return best.build(self.emitter, [self._as_any(n) for n in nodes])

    def _candidates(self, unit: Unit, call: Int8Call, first: tuple[Unit, fx.Node] | None) -> list[Candidate]:
        if first is None:
            return self.view.candidates(unit, call)
        return binding(first[0]).fused[unit.row.name](call)

    def _choose(self, node: fx.Node, best: Candidate) -> None:
        self.choices[node] = KernelChoice(best.kernel, best.precision)

    def _int8_call(self, unit: Unit, node: fx.Node, first: tuple[Unit, fx.Node] | None) -> Int8Call | None:
        """The call if every tensor that it reads is int8 and it has kernels; with the op that it is fused into."""
        if first is not None:
            return fused_call(self.view, first[0], unit, first[1])
        if unit.row.output is Output.WEIGHT_ONLY or binding(unit).kernels is None:
            return None
        if all(n in self.int8 for n in unit.inputs):
            return self.view.call(unit, pair_qparams(node))
        return None

    def _reads_unrounded(self, unit: Unit) -> bool:
        """Whether :mod:`.fp32_entry` lets the unit compute before anything is rounded."""
        quantizable = unit.row.output in (Output.OBSERVED, Output.FIXED) and not binding(unit).float_output
        return quantizable and all(n not in self.int8 and not is_dequantize(n) for n in unit.inputs)

    def _fused_into(self, unit: Unit) -> tuple[Unit, fx.Node] | None:
        """The unit that ``unit`` is fused into, and the value between them, which no pair rounds."""
        for value in unit.inputs:
            first = self.view.unit_of.get(value)
            if first is None or unit.row.name not in binding(first).fused or value in self.int8:
                continue
            if all(n in self.int8 for n in first.inputs) and self.view.weight(first.root) is not None:
                return first, value
        return None

    def _pass_through(self, node: fx.Node) -> bool:
        """Emit an op that works on integers as they are, if its input is int8."""
        unit = self.view.unit_of.get(node)
        if unit is None or unit.row.output is not Output.SHARED or not all(n in self.int8 for n in unit.inputs):
            return False
        self.int8[node] = self.emitter.graph.node_copy(node, partial(self._read_by, unit))
        self.choices[node] = KernelChoice("on integers")
        return True

    def _read_by(self, unit: Unit, node: fx.Node) -> fx.Node:
        """``node`` as an op on integers reads it."""
        value = self._as_any(node)
        if node not in unit.inputs or not binding(unit).copies:
            return value
        return self.emitter.graph.call_method("clone", (value,), {"memory_format": torch.channels_last})

    def _emit_float(self, node: fx.Node) -> None:
        """Emit a node as it is. Nodes that int8 kernels replace have no reader, and are dropped at the end."""
        emitter, unit = self.emitter, self.view.unit_of.get(node)
        if unit is not None and unit.row.weighted and self._weighted_to_float(unit, node):
            return
        if unit is not None and self._reads_unrounded(unit):
            self.choices[unit.root] = KernelChoice(FP32_ENTRY, "fp32")
        if node.op == "placeholder":
            given = emitter.graph.node_copy(node)
            image = any(self._reads_unrounded(u) and node in u.inputs for u in self.view.unit_of.values())
            self._float[node] = emitter.image(given) if image else given
        elif node.target is dequantize_channels:
            return  # a constant, made where it is read
        elif node.op == "get_attr":
            self._float[node] = emitter.constant(self.view.buffer(node), node.name)
        else:
            row = OPS.of(node, self.view.modules)
            read = self._as_float if row is not None else self._as_plain
            if node.op == "call_module":
                args, kwargs = map_arg(node.args, read), map_arg(node.kwargs, read)
                self._float[node] = emitter.module(self.view.modules[str(node.target)], args, kwargs)
                return
            asks_size = row is not None and row.output is Output.META
            self._float[node] = emitter.graph.node_copy(node, self._as_any if asks_size else read)

    def _weighted_to_float(self, unit: Unit, node: fx.Node) -> bool:
        """Emit a weighted op whose output is fp32: an embedding, or a linear layer at the end of a region."""
        weight_only, known = unit.row.output is Output.WEIGHT_ONLY, binding(unit)
        if self.view.weight(unit.root) is None or not (weight_only or known.float_output):
            return False
        if not weight_only and any(map(is_quantize, node.users)):
            return False
        assert known.kernels is not None
        call = self.view.call(unit, None)
        best = self.tuner.best(call, known.kernels(call), self.deterministic)
        self._choose(unit.root, best)
        self._float[node] = best.build(self.emitter, [self._before_pair(n) for n in unit.inputs])
        return True

    def _before_pair(self, node: fx.Node) -> fx.Node:
        """The fp32 value that a quantize/dequantize pair rounds, for a kernel that rounds it itself."""
        quantized = node.args[0] if pair_qparams(node) is not None else None
        return self._unrounded.get(quantized) or self._as_float(node)  # type: ignore[arg-type]

    def _as_float(self, node: fx.Node) -> fx.Node:
        """``node`` as fp32, dequantized at its first fp32 reader."""
        if node not in self._float and node.target is dequantize_channels:
            weight = self.view.weight(next(iter(node.users)))
            assert weight is not None
            self._float[node] = self.emitter.late_constant(weight.dequantized, "weight")
        elif node not in self._float:
            self._float[node] = self.emitter.dequantize(self.int8[node])
        return self._float[node]

    def _as_plain(self, node: fx.Node) -> fx.Node:
        """``node`` as fp32, contiguous: an op that fxquant does not know may read memory as it lies."""
        value = self._as_float(node)
        if node not in self.view.values or len(self.view.values[node].shape) < 4:
            return value
        return self.emitter.graph.call_method("contiguous", (value,))

    def _as_any(self, node: fx.Node) -> fx.Node:
        """``node`` as int8 if it is there in int8, else as fp32."""
        return self.int8.get(node) or self._float[node]

    def _is_image(self, value: fx.Node) -> bool:
        return len(self.view.values[value].shape) == 4
