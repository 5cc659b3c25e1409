"""How long each op takes in int8 and in fp32, and each conversion between them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ....compiler.execution.inputs import bind_inputs
from ....compiler.execution.visitor import Visitor
from ...base.backend import Latencies
from ...base.frozen_nodes import is_dequantize, is_quantize
from ...base.program import FrozenProgram, copy_program
from ...ops.units import match_units
from ..codegen.isa import Isa
from .costs import MOVED, cycles_of
from .drop_pairs import drop_pairs
from .lower import Lowering
from .states import split_states
from .steps import FillStep, Step, TorchStep
from .weights import WeightStore

ROUNDS = 9  # runs that a time is the median of
CLOCK = 3.0e6  # cycles in a millisecond, for estimates
TORCH = 0.03  # milliseconds that an op in torch takes besides its work


@dataclass(frozen=True)
class Timed:
    """A plan of a program with the milliseconds of its ops.

    Attributes:
        of: the node of the plan's own copy, by node of the program.
        of_step: milliseconds of the steps, by the node that they compute; of ops of torch, too.
    """

    lowering: Lowering
    of: Mapping[fx.Node, fx.Node]
    of_step: Mapping[fx.Node, float]

    def milliseconds(self, node: fx.Node) -> float:
        """0 for an op that the step of another one computes."""
        return self.of_step.get(self.of.get(node, node), 0.0)

    def leader(self, node: fx.Node) -> fx.Node | None:
        """The node of the step that computes an op."""
        step = self.lowering.builder.made_by.get(self.of.get(node, node))
        return step.node if step is not None else None


def find_latencies(program: FrozenProgram, isa: Isa) -> Latencies:
    """Times of every int8 unit and of the conversions: estimated if the program is deterministic, else measured.

    An op takes the time of its step in the plan of the whole program: as it is, and with all ops in fp32.
    """
    found = Latencies()
    units = [u for u in match_units(program.module).units if u.root not in program.fp32]
    store = WeightStore()
    int8 = _timed(program, isa, store, () if program.keep_roundings else (drop_pairs,))
    fp32 = _timed(program, isa, store, (_drop_all_pairs,))
    leaders = {int8.of.get(unit.root, unit.root): unit for unit in units}
    for unit in units:
        name = unit.root.name
        found.int8[name] = int8.milliseconds(unit.root)
        found.fp32[name] = sum(map(fp32.milliseconds, unit.nodes))
        first = leaders.get(int8.leader(unit.root))  # type: ignore[arg-type]
        if first is not None and first is not unit:
            found.fused[name] = first.root.name
    values = {unit.output for unit in units}
    values |= {n.args[0] for n in program.module.graph.nodes if is_quantize(n)}
    for value in values & program.values.keys():
        convert = math.prod(program.values[value].shape) / (MOVED * CLOCK * torch.get_num_threads())
        found.quantize[value.name] = found.dequantize[value.name] = convert
    return found


def _drop_all_pairs(program: FrozenProgram) -> None:
    """Let all ops read unrounded values."""
    graph = program.module.graph
    for node in list(graph.nodes):
        if is_dequantize(node):
            node.replace_all_uses_with(node.args[0].args[0])
    graph.eliminate_dead_code()
    program.module.recompile()


def _timed(
    program: FrozenProgram, isa: Isa, store: WeightStore, changes: Sequence[Callable[[FrozenProgram], Any]]
) -> Timed:
    """The plan of a program after ``changes``."""
    copied = copy_program(program)
    split_states(copied.program.module)
    for change in changes:
        change(copied.program)
    given = _placeholders(copied.program)
    lowering = Lowering(copied.program.module, given, isa, store)
    times = _estimated(lowering) if program.deterministic else _measured(lowering, copied.program, given)
    milliseconds: dict[fx.Node, float] = {}
    for step, each in times:
        if step.node is not None:
            milliseconds[step.node] = milliseconds.get(step.node, 0.0) + each
    return Timed(lowering, copied.of, milliseconds)


def _placeholders(program: FrozenProgram) -> dict[fx.Node, Any]:
    nodes = [n for n in program.module.graph.nodes if n.op == "placeholder"]
    return dict(zip(nodes, bind_inputs(program.module, *program.example), strict=True))


def _estimated(lowering: Lowering) -> list[tuple[Step | TorchStep, float]]:
    """Each step with its milliseconds."""
    lowering.walk()
    steps = [s for s in lowering.builder.steps if not isinstance(s, FillStep)]
    throughput = CLOCK * torch.get_num_threads()
    return [(s, TORCH * isinstance(s, TorchStep) + _cycles(s, lowering) / throughput) for s in steps]


def _cycles(step: Step | TorchStep, lowering: Lowering) -> float:
    """Cycles of one core, all rounds of a loop together, from products and elements."""
    if isinstance(step, TorchStep):
        info = lowering.builder.infos.get(step.node) if step.node is not None else None
        return math.prod(info.shape) / MOVED if info is not None else 0.0
    return cycles_of(step, lowering.isa) * (step.loop.rounds if step.loop is not None else 1)


def _measured(
    lowering: Lowering, program: FrozenProgram, given: Mapping[fx.Node, Any]
) -> list[tuple[Step | TorchStep, float]]:
    """Each step with its milliseconds."""
    plan = lowering.plan()
    times = zip(plan.native, plan.step_seconds(given, ROUNDS), strict=True)
    native: list[tuple[Step | TorchStep, float]] = [(s, 1e3 * t) for s, t in times if isinstance(s, Step)]
    others = [s for s in plan.steps if isinstance(s, TorchStep)]
    in_torch = _in_torch(program) if others else {}
    return native + [(s, in_torch[s.node]) for s in others if s.node in in_torch]


def _in_torch(program: FrozenProgram) -> Mapping[fx.Node | None, float]:
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
