"""The x86 backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx, nn

from ...compiler.core.messages import check_choice
from ...compiler.core.progress import log, stage
from ..base.backend import Latencies, Lowered, Target
from ..base.binding import Binding
from ..base.dynamic_layer import DynamicLayer
from ..base.program import FrozenProgram, copy_program
from .bindings import saturation
from .bindings.table import BINDINGS
from .codegen.executors import EXECUTORS, graph_forms
from .lowering.fp32_entry import drop_entry_pairs
from .lowering.fuse import fuse
from .lowering.kernel_errors import KernelErrors
from .lowering.latencies import find_latencies
from .lowering.lower import Lowering
from .lowering.program_view import ProgramView
from .runtime.cpu import has_vnni
from .runtime.script import swallow_deprecation_warning
from .tuning.cache import machine
from .tuning.tuner import Tuner

AFFINE_LIMIT = 64  # without VNNI the raw integers must leave the 16-bit pair sums room, whatever the zero point


def detect_target() -> Target:
    """This CPU."""
    return Target(vnni=has_vnni())


class X86Backend:
    """Kernels of fbgemm and oneDNN through ``torch.ops.quantized``, chosen by measuring.

    Args:
        target: the CPU to compile for; None is this one.
        executor: how the lowered graph runs, see :mod:`.codegen.executors`.
        tuner: measured kernel times; None uses the cache on disk.
    """

    name = "x86"
    bindings: Mapping[str, Binding] = BINDINGS
    measures_latency = True
    same_roundings = True

    def __init__(self, target: Target | None = None, executor: str = "auto", tuner: Tuner | None = None) -> None:
        swallow_deprecation_warning()
        check_choice("executor", executor, EXECUTORS)
        self.target = target or detect_target()
        self.affine_weight_limit = None if self.target.vnni else AFFINE_LIMIT
        self.executor = executor
        self.tuner = tuner or Tuner(executor=executor)

    @property
    def machine(self) -> str:
        """The CPU and the version of torch."""
        return machine()

    def weight_scale_floor(
        self, layer: nn.Module, weight: Tensor, top: Tensor | None, rounding: float = 0.5
    ) -> Tensor | None:
        """See :mod:`.bindings.saturation`. With VNNI nothing saturates."""
        if self.target.vnni or weight.dim() < 2 or hasattr(layer, "num_embeddings"):
            return None
        axis = 1 if getattr(layer, "transposed", False) else 0
        return saturation.scale_floor(weight, axis, int(getattr(layer, "groups", 1)), top, rounding)

    def graph_forms(self, gm: fx.GraphModule) -> list[Callable[..., Any]]:
        """The graph under TorchScript, if that takes it, and as it is."""
        return graph_forms(gm, self.executor)

    def latencies(self, program: FrozenProgram) -> Latencies:
        """By a cost model if the program is deterministic; else measured once, then read from the cache on disk."""
        found = find_latencies(ProgramView(program), self.tuner.costs(program.deterministic))
        self.tuner.save()
        return found

    def lower(self, program: FrozenProgram, layers: Mapping[nn.Module, DynamicLayer]) -> Lowered:
        """Fuse where that is faster, choose kernels, emit."""
        copied = copy_program(program, layers)
        executed = copied.program
        view = ProgramView(executed, {copied.of.get(n, n): v for n, v in program.values.items()})
        if not program.keep_roundings:  # both drop pairs
            costs = self.tuner.costs(program.deterministic)
            entered, fused = drop_entry_pairs(view, costs), fuse(view, costs)
            log.info("x86: %d first ops compute in fp32, %d ops are fused into the one before", entered, fused)
            view = ProgramView(executed, view.values)
        lowering = Lowering(view, self.tuner, program.deterministic)
        lowering.emit()
        self.tuner.save()
        with stage("build the lowered graph"):
            run = EXECUTORS[self.executor](lowering.emitter, executed)
        errors = KernelErrors(executed.module, lowering.emitter, lowering.int8)
        return Lowered(run, executed, copied.of, lowering.choices, lowering.emitter.weight_bytes(), errors)
