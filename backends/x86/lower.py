"""Lowering: a walk over the frozen graph that emits int8 kernels, and fp32 ops where there is none."""

from __future__ import annotations

from torch import fx
from torch.fx.node import map_arg

from ...compiler.qdq import dequantize, dequantize_channels, quantize
from ..base import Output
from ..units import Unit
from .calls import Int8Call
from .emitter import Emitter
from .frozen_graph import FrozenGraph
from .fuse import fused_call
from .kernels.fp32 import FP32_ENTRY
from .tune import Tuner


class Lowering:
    """One lowering of one frozen graph."""

    def __init__(self, graph: FrozenGraph, tuner: Tuner) -> None:
        self.graph = graph
        self.tuner = tuner
        self.emitter = Emitter()
        self.int8: dict[fx.Node, fx.Node] = {}  # frozen value -> the quint8 node that holds it exactly
        self.float: dict[fx.Node, fx.Node] = {}
        self.entered: dict[fx.Node, fx.Node] = {}  # quantize -> the fp32 node that it rounds, computed in fp32
        self.kernels: dict[fx.Node, str] = {}

    def emit(self) -> tuple[Emitter, dict[fx.Node, str]]:
        """The lowered graph, and the kernel of each frozen node that has one."""
        for node in self.graph.gm.graph.nodes:
            if node.op == "call_function" and node.target is quantize:
                self.int8[node] = self._quantize(node)
            elif node.op == "call_function" and node.target is dequantize:
                self.int8[node] = self.int8[node.args[0]]
            elif not self._pass_through(node):
                self._float(node)
        return self.emitter, self.kernels

    def _quantize(self, node: fx.Node) -> fx.Node:
        """The int8 value of a ``quantize``: of the op before it if that has a kernel, else of its fp32 value."""
        value: fx.Node = node.args[0]  # type: ignore[assignment]
        if value in self.int8:
            return self.int8[value]
        unit = self.graph.unit_of.get(value)
        fused = self._fused_first(unit) if unit is not None else None
        call = self._int8_call(unit, node, fused) if unit is not None else None
        if unit is None or call is None:
            known = self.graph.qparams(node)
            assert known is not None
            self.entered[node] = self.as_float(value)
            return self.emitter.quantize(self.entered[node], known, self._is_image(value))
        rule, nodes = unit.rule, unit.inputs
        if fused:
            first, link = fused
            self.kernels[unit.root] = f"fused into '{first.root.name}'"
            candidates = first.rule.fused[rule.name](call)
            nodes = (*first.inputs, *(n for n in unit.inputs if n is not link))
        else:
            candidates = self.graph.candidates(rule, call)
        best = self.tuner.best(call, candidates)
        self.kernels[call.node] = best.kernel
        return best.build(self.emitter, [self._as_any(n) for n in nodes])

    def _int8_call(self, unit: Unit, node: fx.Node, fused: tuple[Unit, fx.Node] | None) -> Int8Call | None:
        """The call, if every tensor it reads is int8 and its row has kernels; with the op it is fused into, if any."""
        if fused:
            return fused_call(self.graph, fused[0], unit, fused[1])
        if unit.rule.output is Output.WEIGHT_ONLY or unit.rule.kernels is None:
            return None
        if all(n in self.int8 for n in unit.inputs):
            return self.graph.call(unit, self.graph.qparams(node))
        return None

    def _reads_unrounded(self, unit: Unit) -> bool:
        """Whether :mod:`.entry` let the unit compute before anything is rounded."""
        quantizable = unit.rule.output in (Output.OBSERVED, Output.FIXED) and not unit.rule.float_output
        return quantizable and all(n not in self.int8 and n.target is not dequantize for n in unit.inputs)

    def _fused_first(self, unit: Unit) -> tuple[Unit, fx.Node] | None:
        """The unit that ``unit`` is fused into, and the value between them: one that no pair rounds."""
        for value in unit.inputs:
            first = self.graph.unit_of.get(value)
            if first is None or unit.rule.name not in first.rule.fused or value in self.int8:
                continue
            if all(n in self.int8 for n in first.inputs) and self.graph.weight(first.root) is not None:
                return first, value
        return None

    def _pass_through(self, node: fx.Node) -> bool:
        """Emit an op that works on integers as they are, where its input is int8."""
        unit = self.graph.unit_of.get(node)
        if unit is None or unit.rule.output is not Output.SHARED or not all(n in self.int8 for n in unit.inputs):
            return False
        self.int8[node] = self.emitter.graph.node_copy(node, self._as_any)
        self.kernels[node] = "on integers"
        return True

    def _float(self, node: fx.Node) -> None:
        """Emit a node as it stands. What int8 kernels replace is left unread and dropped at the end."""
        emitter = self.emitter
        unit = self.graph.unit_of.get(node)
        if unit is not None and unit.rule.weighted and self._weighted_to_float(unit, node):
            return
        if unit is not None and self._reads_unrounded(unit):
            self.kernels[unit.root] = FP32_ENTRY
        if node.op == "placeholder":
            given = emitter.graph.node_copy(node)
            entered = any(self._reads_unrounded(u) and node in u.inputs for u in self.graph.unit_of.values())
            self.float[node] = emitter.image(given) if entered else given
        elif node.target is dequantize_channels:
            return  # a constant, made where it is read
        elif node.op == "get_attr":
            self.float[node] = emitter.constant(self.graph.buffer(node), node.name)
        elif node.op == "call_module":
            args = map_arg(node.args, self.as_float)
            kwargs = map_arg(node.kwargs, self.as_float)
            self.float[node] = emitter.module(self.graph.modules[str(node.target)], args, kwargs)
        else:
            rule = self.graph.table.of(node, self.graph.modules)
            asks_size = rule is not None and rule.output is Output.META
            self.float[node] = emitter.graph.node_copy(node, self._as_any if asks_size else self.as_float)

    def _weighted_to_float(self, unit: Unit, node: fx.Node) -> bool:
        """A weighted op whose output is fp32: an embedding, or a linear layer at the end of a region."""
        rule = unit.rule
        weight_only = rule.output is Output.WEIGHT_ONLY
        if self.graph.weight(unit.root) is None or not (weight_only or rule.float_output):
            return False
        if not weight_only and any(u.target is quantize for u in node.users):
            return False
        call = self.graph.call(unit, None)
        best = self.tuner.best(call, rule.kernels(call))
        self.kernels[unit.root] = best.kernel
        self.float[node] = best.build(self.emitter, [self._before_pair(n) for n in unit.inputs])
        return True

    def _before_pair(self, node: fx.Node) -> fx.Node:
        """The fp32 value that a quantize/dequantize pair rounds: the kernel does that itself."""
        quantized = node.args[0] if self.graph.qparams(node) is not None else None
        return self.entered.get(quantized) or self.as_float(node)  # type: ignore[arg-type]

    def as_float(self, node: fx.Node) -> fx.Node:
        """``node`` as fp32, dequantized at its first fp32 reader."""
        if node not in self.float and node.target is dequantize_channels:
            weight = self.graph.weight(next(iter(node.users)))
            assert weight is not None
            self.float[node] = self.emitter.constant(weight.dequantized(), "weight")
        elif node not in self.float:
            self.float[node] = self.emitter.dequantize(self.int8[node])
        return self.float[node]

    def _as_any(self, node: fx.Node) -> fx.Node:
        """``node`` as int8 where it has that form, else as fp32."""
        return self.int8.get(node) or self.float[node]

    def _is_image(self, value: fx.Node) -> bool:
        return len(self.graph.values[value].shape) == 4
