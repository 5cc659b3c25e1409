"""From a program and inputs to a plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from ....compiler.execution.user_code import is_hooked, runs_user_code
from ....compiler.execution.visitor import Visitor
from ....compiler.numerics.quantize import dequantize_channels
from ...base.backend import KernelChoice
from ...base.dynamic_layer import spec_of
from ...base.dynamic_spec import DynamicSpec
from ...base.frozen_nodes import is_dequantize, is_quantize, literal_qparams
from ...base.op import OpRow
from ...ops.table import OPS
from ..codegen.expr import Kind
from ..codegen.isa import Isa
from .builder import Builder
from .float_specs import float_spec
from .lazy import read_form
from .plan import Plan
from .rules import pointwise
from .rules.table import DYNAMIC, EMBEDDINGS, RECURRENT, RULES
from .sizes import sizes
from .steps import ElementwiseStep, Step, TorchStep
from .storage import Storage
from .values import Value
from .weights import WeightStore

CHANNELS_LAST = (0, 2, 3, 1)  # the order of axes in memory
GIVEN: Mapping[torch.dtype, Kind] = {torch.float32: "f32", torch.int64: "i64"}  # inputs that kernels read


class Lowering:
    """One plan of one program.

    Args:
        gm: the graph of the program.
        given: the values of the placeholders; only their shapes, dtypes and strides matter.
        isa: the instruction set.
        store: what the plans of the program share.
    """

    def __init__(
        self, gm: fx.GraphModule, given: Mapping[fx.Node, Any], isa: Isa, store: WeightStore | None = None
    ) -> None:
        self.gm, self.given, self.isa = gm, given, isa
        self.inputs: list[fx.Node] = []
        self.outputs: list[Storage] = []
        self.returned: dict[fx.Node, int] = {}
        self.channels_last = False  # whether images are: outputs are then, too
        infos, statics = sizes(gm, given)
        self.builder = Builder(gm, infos, statics, isa, store or WeightStore())
        self.views: list[fx.Node] = []
        self.recurrent: dict[fx.Node, DynamicSpec] = {}

    def plan(self) -> Plan:
        """The steps with their kernels, ready to run."""
        result = self.walk()
        self.given = {}  # tensors of the user
        builder = self.builder
        return Plan(builder.steps, self.inputs, self.outputs, result, self.returned, self.isa, builder.store)

    def walk(self) -> Any:
        """Find the steps. Returns what forward() returns, with nodes in it."""
        result: Any = None
        for node in self.gm.graph.nodes:
            if node.op == "output":
                result = map_arg(node.args[0], lambda n: self.builder.statics.get(n, n))
                map_arg(result, self._return)
            elif node not in self.builder.statics:
                self._visit(node)
        return result

    def _visit(self, node: fx.Node) -> None:
        builder = self.builder
        if node.op == "placeholder":
            self._placeholder(node)
        elif node.op == "get_attr":
            if builder.constant(node).is_floating_point():
                pointwise.constant(builder, node)
        elif node.target is dequantize_channels:
            return  # read where it is used
        elif is_quantize(node):
            builder.quantize(node, node.args[0], literal_qparams(node))  # type: ignore[arg-type]
        elif is_dequantize(node):
            value, shift = builder.quantized[node.args[0]]  # type: ignore[index]
            builder.set_value(node, value, float(node.args[1]), int(node.args[2]) + shift)  # type: ignore[arg-type]
        elif not self._by_rule(node, OPS.of(node, builder.modules)) and not self._layer(node):
            self._in_torch(node)

    def _is_torchs_own(self, node: fx.Node) -> bool:
        """Whether a node runs nothing but what its op tells."""
        modules = self.builder.modules
        hooked = node.op == "call_module" and is_hooked(modules[str(node.target)])
        return not hooked and not runs_user_code(node, modules)

    def _layer(self, node: fx.Node) -> bool:
        """A layer that quantizes its input, or a recurrent layer or an embedding in fp32."""
        builder = self.builder
        spec = spec_of(builder.modules.get(str(node.target)) if node.op == "call_module" else None)
        if spec is None and self._is_torchs_own(node):
            spec = builder.store.read((node.target, "float"), lambda: float_spec(builder, node))
        infos = builder.infos
        if any(n in infos and not math.prod(infos[n].shape) for n in (node, *node.all_input_nodes)):
            return False  # nothing to compute
        if spec is None or spec.op not in DYNAMIC or not DYNAMIC[spec.op](builder, node, spec):
            return False
        if spec.op in RECURRENT:
            self.recurrent[node] = spec
        elif spec.op not in EMBEDDINGS:
            self._note(node)
        return True

    def _by_rule(self, node: fx.Node, row: OpRow | None) -> bool:
        rule = RULES.get(row.name) if row is not None else None
        if rule is None or not self._is_torchs_own(node):
            return False
        first = node.args[0] if node.args else None
        assert row is not None
        read = first if isinstance(first, list | tuple) else node.args[: max(row.inputs, 1)]
        tensors = [n for n in read if isinstance(n, fx.Node) and n not in self.builder.statics]
        if not all(n in self.builder.lazy or n in self.builder.pieces for n in tensors):
            return False
        others = set(node.all_input_nodes) - set(tensors) - self.builder.statics.keys() - self.builder.lazy.keys()
        infos = self.builder.infos
        masks = {n for n in others if n in infos and infos[n].dtype == torch.bool}
        if any(n.target is not dequantize_channels for n in others - masks):
            return False  # a number that a call gives
        if any(n in infos and not math.prod(infos[n].shape) for n in (node, *tensors)):
            return False  # nothing to compute
        if not rule(self.builder, node):
            return False
        self._note(node)
        return True

    def _note(self, node: fx.Node) -> None:
        """Remember which ops a form computes, and which ops are views."""
        lazy = self.builder.lazy.get(node)
        if lazy is None or lazy.plain is not None:
            self.views.append(node)
            return
        inputs = [self.builder.lazy[n] for n in node.all_input_nodes if n in self.builder.lazy]
        ops = dict.fromkeys(op for i in inputs for op in i.ops)
        self.builder.lazy[node] = replace(lazy, ops=(*ops, node))

    @property
    def choices(self) -> dict[fx.Node, KernelChoice]:
        """What runs each op."""
        found = {node: KernelChoice("a view") for node in self.views}
        for op, step in self.builder.made_by.items():
            found[op] = self._choice(op, step)
        for op, spec in self.recurrent.items():
            integers = any(not isinstance(w, Tensor) for w in spec.weights.values())
            found[op] = KernelChoice(f"{self.isa.name} {spec.op}", "int8" if integers else "fp32")
        return found

    def _choice(self, op: fx.Node, step: Step | TorchStep) -> KernelChoice:
        if isinstance(step, TorchStep):
            return KernelChoice("torch", "fp32")
        if op is not step.node:
            return KernelChoice("", fused_into=step.node.name)
        integers = any(v.element != "f32" for v in (step.target, *step.reads))
        return KernelChoice(f"{self.isa.name} {step.kind}", "int8" if integers else "fp32")

    def _placeholder(self, node: fx.Node) -> None:
        value = self.given[node]
        if not isinstance(value, Tensor) or value.dtype not in GIVEN:
            return
        element, shape, steps = GIVEN[value.dtype], tuple(value.shape), value.stride()
        order = tuple(sorted(range(len(shape)), key=lambda a: (-steps[a], a)))
        strides = tuple(value.element_size() * s for s in steps)
        storage = Storage(element, shape, order, "input", len(self.inputs), fixed_strides=strides, dense=True)
        if element == "f32":
            self.channels_last |= order == CHANNELS_LAST and not value.is_contiguous()
            self.builder.set_value(node, Value.of(storage))
        elif value.is_contiguous():
            self.builder.integers[node] = Value.of(storage)
        else:
            return
        self.inputs.append(node)

    def _in_torch(self, node: fx.Node) -> None:
        builder = self.builder
        reads = {n: builder.float_value(n) for n in node.all_input_nodes if n in builder.lazy}
        reads = {n: v for n, v in reads.items() if n.op != "placeholder"}
        info = builder.infos.get(node)
        target = None
        if info is not None and info.dtype == torch.float32:
            order = tuple(range(len(info.shape)))
            target = Value.of(Storage("f32", info.shape, order))
            builder.set_value(node, target)
        builder.add(TorchStep(node, reads, target, self._call(node)), node)

    def _call(self, node: fx.Node) -> Callable[[Callable[[fx.Node], Any]], Any]:
        gm, statics = self.gm, self.builder.statics
        runner = Visitor(gm)

        def run(value_of: Callable[[fx.Node], Any]) -> Any:
            def value(n: fx.Node) -> Any:
                if n in statics:
                    return statics[n]
                if n.op == "get_attr":
                    return runner.fetch_attr(str(n.target))
                if n.target is dequantize_channels:
                    return dequantize_channels(*map_arg(n.args, value))
                return value_of(n)

            args, kwargs = map_arg(node.args, value), map_arg(node.kwargs, value)
            with torch.no_grad():
                return getattr(runner, node.op)(node.target, args, kwargs)

        return run

    def _return(self, node: fx.Node) -> fx.Node:
        builder = self.builder
        if node not in builder.lazy or node in self.returned:
            return node
        lazy = builder.read(node)
        order = tuple(range(len(lazy.shape)))
        if lazy.order == CHANNELS_LAST and self.channels_last:
            order = CHANNELS_LAST
        place = len(self.outputs)
        storage = Storage("f32", lazy.shape, order, "output", place, dense=True)
        self.outputs.append(storage)
        self.returned[node] = place
        target = Value.of(storage)
        if lazy.draft is not None and lazy.order != order:
            builder.add(ElementwiseStep(node, read_form(builder.float_value(node)), target))
        else:
            builder.emit(lazy, lazy.clamped, target)
        return node
