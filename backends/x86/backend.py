"""The x86 backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...compiler.errors import ConfigError
from ..base import Frozen, Latencies, Lowered, Target
from ..dynamic import DynamicLayer, Layer
from . import saturation
from .apart import Apart
from .engine import take_deprecation_warning
from .entry import enter_in_fp32
from .executors import EXECUTORS, graph_forms
from .frozen_graph import FrozenGraph
from .fuse import fuse
from .latencies import measure_latencies
from .lower import Lowering
from .table import build_table
from .tune import Tuner


def detect_target() -> Target:
    """This CPU."""
    capabilities: Mapping[str, Any] = torch.cpu.get_capabilities()
    # AVX-VNNI alone does not count: fbgemm uses the AVX512 form only.
    return Target(vnni=bool(capabilities.get("avx512_vnni", False)))


class X86Backend:
    """Kernels of fbgemm and oneDNN through ``torch.ops.quantized``, chosen by measuring.

    Args:
        target: the CPU to compile for; None detects this one.
        executor: see :mod:`.executors`.
        tuner: measured kernel times; None reads and writes the cache on disk.
    """

    name = "x86"

    def __init__(self, target: Target | None = None, executor: str = "auto", tuner: Tuner | None = None) -> None:
        take_deprecation_warning()
        if target is not None and not isinstance(target, Target):
            raise ConfigError(f"target must be a Target, got {type(target).__name__}.")
        self.target = target or detect_target()
        self.table = build_table()
        self.executor = executor
        self.tuner = tuner or Tuner(executor=executor)

    def weight_scale_floor(
        self, layer: nn.Module, weight: Tensor, top: Tensor | None, rounding: float = 0.5
    ) -> Tensor | None:
        """See :mod:`.saturation`; with VNNI nothing saturates."""
        if self.target.vnni or weight.dim() < 2 or hasattr(layer, "num_embeddings"):
            return None
        axis = 1 if getattr(layer, "transposed", False) else 0
        return saturation.scale_floor(weight, axis, int(getattr(layer, "groups", 1)), top, rounding)

    def dynamic(self, layer: Layer) -> DynamicLayer:
        """The class that the layer's row names, made of it."""
        made: DynamicLayer = layer.rule.dynamic(layer)
        return made

    def graph_forms(self, gm: fx.GraphModule) -> list[Callable[..., Any]]:
        """See :func:`.executors.graph_forms`."""
        return graph_forms(gm, self.executor)

    def latencies(self, frozen: Frozen) -> Latencies:
        """See :mod:`.latencies`; measured once, then read from the cache on disk."""
        measured = measure_latencies(FrozenGraph(frozen, self.table), self.tuner)
        self.tuner.save()
        return measured

    def lower(self, frozen: Frozen) -> Lowered:
        """Fuse where it pays, choose kernels, emit. What was trained keeps its roundings: both leave some out."""
        graph = FrozenGraph(frozen, self.table)
        if not frozen.trained:
            enter_in_fp32(graph, self.tuner)
            fuse(graph, self.tuner)
        lowering = Lowering(FrozenGraph(frozen, self.table), self.tuner)
        emitter, kernels = lowering.emit()
        self.tuner.save()
        run = EXECUTORS[self.executor](emitter, frozen)
        apart = Apart(frozen.module, emitter, lowering.int8)
        return Lowered(run, frozen, kernels, emitter.weight_bytes(), apart)
