"""The reference backend: the frozen graph itself, in plain torch ops. The oracle of the tests."""

from __future__ import annotations

from torch import Tensor, fx, nn

from ..base import Frozen, Lowered, OpTable, Target


class ReferenceBackend:
    """Runs the frozen graph of another backend as it stands.

    Args:
        table: of the backend whose graphs are run.
        target: what it compiles for.
    """

    name = "reference"

    def __init__(self, table: OpTable, target: Target) -> None:
        self.table, self.target = table, target

    def weight_scale_floor(
        self, layer: nn.Module, weight: Tensor, top: Tensor | None, rounding: float = 0.5
    ) -> Tensor | None:
        """None: fp32 sums do not saturate."""
        return None

    def lower(self, frozen: Frozen) -> Lowered:
        """The frozen graph as it is."""
        gm: fx.GraphModule = frozen.module
        kernels = {n: "reference" for n in gm.graph.nodes if n.op in ("call_function", "call_module")}
        size = sum(b.numel() * b.element_size() for b in (*gm.buffers(), *gm.parameters()))
        return Lowered(gm, frozen, kernels, size)
