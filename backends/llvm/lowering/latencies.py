"""How long each op takes in int8 and in fp32, and each conversion between them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from ....compiler.execution.inputs import bind_inputs
from ....compiler.execution.visitor import Visitor
from ...base.backend import Latencies
from ...base.frozen_nodes import is_quantize
from ...base.program import FrozenProgram, copy_program
from ...ops.units import Unit, match_units
from ..codegen.isa import Isa
from .contraction import ContractionStep
from .drop_pairs import drop_pairs
from .lower import Lowering
from .products import ProductStep
from .steps import Step

ROUNDS = 9  # runs that a time is the median of
CLOCK = 3.0e6  # cycles in a millisecond, for estimates
MOVED = 4.0  # elements that a core computes or converts in a cycle, for estimates
TORCH = 0.03  # milliseconds that an op in torch takes besides its work
FP32_PRODUCTS = 12.0  # fp32 products that a core does in a cycle

Times = Mapping[fx.Node, float]  # milliseconds


def find_latencies(program: FrozenProgram, isa: Isa) -> Latencies:
    """Times of every int8 unit and of the conversions: estimated if the program is deterministic, else measured.

    In int8, an op takes the time of its step in the plan of the whole program. In fp32, torch runs it.
    """
    found = Latencies()
    units = [u for u in match_units(program.module).units if u.root not in program.fp32]
    copied = copy_program(program)
    if not program.keep_roundings:
        drop_pairs(copied.program)
    given = _placeholders(copied.program)
    lowering = Lowering(copied.program.module, given, isa)
    int8: dict[fx.Node, float] = {}
    for step, seconds in _timed(lowering, given, program.deterministic):
        int8[step.node] = int8.get(step.node, 0.0) + 1e3 * seconds
    fp32 = _estimated_in_torch(program, units) if program.deterministic else _in_torch(program)
    for unit in units:
        name, node = unit.root.name, copied.of.get(unit.root, unit.root)
        leader = lowering.builder.made_by.get(node)
        found.int8[name] = int8.get(node, 0.0)
        found.fp32[name] = sum(fp32.get(n, 0.0) for n in unit.nodes)
        first = next((u for u in units if leader is not None and copied.of.get(u.root) is leader.node), None)
        if first is not None and first is not unit:
            found.fused[name] = first.root.name
    values = {unit.output for unit in units}
    values |= {n.args[0] for n in program.module.graph.nodes if is_quantize(n)}
    for value in values & program.values.keys():
        elements = math.prod(program.values[value].shape)
        convert = elements / (MOVED * CLOCK * torch.get_num_threads())
        found.quantize[value.name], found.dequantize[value.name] = convert, convert + TORCH
    return found


def _placeholders(program: FrozenProgram) -> dict[fx.Node, Any]:
    nodes = [n for n in program.module.graph.nodes if n.op == "placeholder"]
    return dict(zip(nodes, bind_inputs(program.module, *program.example), strict=True))


def _timed(lowering: Lowering, given: Mapping[fx.Node, Any], estimate: bool) -> list[tuple[Step, float]]:
    """Each step with its seconds."""
    if estimate:
        lowering.walk()
        return [(s, _estimated(s, lowering.isa)) for s in lowering.builder.steps if isinstance(s, Step)]
    plan = lowering.plan()
    times = zip(plan.native, plan.step_seconds(given, ROUNDS), strict=True)
    return [(step, seconds) for step, seconds in times if isinstance(step, Step)]


def _estimated(step: Step, isa: Isa) -> float:
    """Seconds of a step, from its products and elements."""
    cycles = step.target.numel / MOVED
    if isinstance(step, ContractionStep):
        cycles += step.products / isa.products * (4.0 if step.depthwise else 1.3)
    if isinstance(step, ProductStep):
        cycles += step.products / FP32_PRODUCTS
    return cycles / (1e3 * CLOCK * torch.get_num_threads())


def _estimated_in_torch(program: FrozenProgram, units: list[Unit]) -> Times:
    """Milliseconds of each op in fp32, from its products and elements."""
    found = {}
    for unit in units:
        info = program.values.get(unit.root)
        elements = math.prod(info.shape) if info is not None else 0
        weight = unit.root.args[1] if unit.row.weighted and len(unit.root.args) > 1 else None
        shape = program.values[weight].shape if weight in program.values else ()  # type: ignore[index]
        products = elements * math.prod(shape[1:]) if shape else 0
        cycles = products / FP32_PRODUCTS + elements / MOVED
        found[unit.root] = TORCH + cycles / (CLOCK * torch.get_num_threads())
    return found


def _in_torch(program: FrozenProgram) -> Times:
    """Milliseconds of each op of the program in plain torch: the median."""
    times: dict[fx.Node, list[float]] = {}

    def measure(node: fx.Node, run: Callable[[fx.Node], Any]) -> Any:
        start = time.perf_counter()
        value = run(node)
        times.setdefault(node, []).append(1e3 * (time.perf_counter() - start))
        return value

    for _ in range(ROUNDS):
        Visitor(program.module, around=measure).visit(program.example)
    return {node: sorted(each)[len(each) // 2] for node, each in times.items()}
