"""The llvm backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, fx, nn

from ...compiler.core.progress import log, stage
from ..base.backend import Latencies, Lowered, Target, binding_named
from ..base.binding import Binding
from ..base.dynamic_layer import DynamicLayer
from ..base.program import FrozenProgram, copy_program
from .bindings.table import BINDINGS, REFUSALS, prefer_float
from .codegen.isa import Isa
from .codegen.isas import available
from .lowering.drop_pairs import drop_pairs
from .lowering.entry import widen_entry
from .lowering.latencies import find_latencies
from .lowering.planned_layers import planned_layer
from .lowering.programs import PlannedProgram
from .lowering.rules.table import DYNAMIC, RECURRENT
from .lowering.states import split_states
from .tuning.latency_cache import LatencyCache


class LLVMBackend:
    """Native code for the whole model, generated for its very shapes.

    The result is the same on every CPU and for any number of threads: sums of products are exact, and fp32 is computed
    in one order.

    Args:
        target: makes no difference: products do not saturate on any CPU.
        isa: the instruction set; None is the best of this CPU.
    """

    name = "llvm"
    affine_weight_limit: int | None = None
    measures_latency = True
    same_roundings = False

    def __init__(self, target: Target | None = None, isa: Isa | None = None) -> None:
        self.isa = isa or available()[0]
        self.target = target or Target(vnni=True)
        make = partial(planned_layer, isa=self.isa)
        self.bindings: Mapping[str, Binding] = BINDINGS
        layers = {
            name: replace(
                binding_named(self, name),
                dynamic=make,
                mixed_weights=name in RECURRENT,
                group_scales=not name.startswith("embedding"),
                refuse_dynamic=REFUSALS.get(name),
                prefer_float=prefer_float,
            )
            for name in DYNAMIC
        }
        self.bindings = {**BINDINGS, **layers}

    @property
    def machine(self) -> str:
        """The CPU and the instruction set."""
        return f"{self.isa.cpu.name} {self.isa.name}"

    def weight_scale_floor(
        self, layer: nn.Module, weight: Tensor, top: Tensor | None, rounding: float = 0.5
    ) -> Tensor | None:
        """None: products do not saturate."""
        return None

    def graph_forms(self, gm: fx.GraphModule) -> list[Callable[..., Any]]:
        """A native function for each kind of call, which is planned when it comes."""
        split_states(gm)
        return [PlannedProgram(FrozenProgram(gm, ((), {})), self.isa)]

    def latencies(self, program: FrozenProgram) -> Latencies:
        """Estimated if the program is deterministic; else measured in the plan of the whole program."""
        if program.deterministic:
            return find_latencies(program, self.isa)
        cache = LatencyCache(self.machine)
        key = cache.key(program)
        known = cache.read(key)
        if known is None:
            known = find_latencies(program, self.isa)
            cache.write(key, known)
        return known

    def lower(self, program: FrozenProgram, layers: Mapping[nn.Module, DynamicLayer]) -> Lowered:
        """Fuse elementwise ops, plan for the example, and generate its kernels."""
        copied = copy_program(program, layers)
        executed = copied.program
        split_states(executed.module)
        if not program.keep_roundings:
            fused, widened = drop_pairs(executed), widen_entry(executed)
            log.info("llvm: %d ops read unrounded values, %d first values have 16 bits", fused, widened)
        planned = PlannedProgram(executed, self.isa)
        with stage("plan"):
            choices, weight_bytes = planned.on_example()
        return Lowered(planned, executed, copied.of, choices, weight_bytes, planned.kernel_errors)
