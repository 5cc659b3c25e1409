"""Two backends as one: each does what it is better at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn

from .backend import Backend, Latencies, Lowered, binding_named
from .binding import Binding
from .dynamic_layer import DynamicLayer
from .program import FrozenProgram


class JoinedBackend:
    """``main`` does all; dynamic layers that it does not have are those of ``layers``.

    A program calls its dynamic layers as modules, whatever runs the rest.
    """

    def __init__(self, main: Backend, layers: Backend) -> None:
        self.main, self.layers = main, layers
        self.name, self.target, self.machine = main.name, main.target, main.machine
        self.affine_weight_limit, self.measures_latency = main.affine_weight_limit, main.measures_latency
        self.same_roundings = main.same_roundings
        self.bindings: Mapping[str, Binding] = {
            name: _joined(main, layers, name) for name in {**main.bindings, **layers.bindings}
        }

    def weight_scale_floor(
        self, layer: nn.Module, weight: Tensor, top: Tensor | None, rounding: float = 0.5
    ) -> Tensor | None:
        """See :class:`~.backend.Backend`."""
        return self.main.weight_scale_floor(layer, weight, top, rounding)

    def graph_forms(self, gm: fx.GraphModule) -> list[Callable[..., Any]]:
        """See :class:`~.backend.Backend`."""
        return self.main.graph_forms(gm)

    def latencies(self, program: FrozenProgram) -> Latencies | None:
        """See :class:`~.backend.Backend`."""
        return self.main.latencies(program)

    def lower(self, program: FrozenProgram, layers: Mapping[nn.Module, DynamicLayer]) -> Lowered:
        """See :class:`~.backend.Backend`."""
        return self.main.lower(program, layers)


def backend_of_layer(backend: Backend, name: str) -> Backend:
    """The backend that makes the dynamic layers of the op ``name``, whose limits their weights must keep."""
    if not isinstance(backend, JoinedBackend):
        return backend
    return backend.layers if binding_named(backend.main, name).dynamic is None else backend.main


def _joined(main: Backend, layers: Backend, name: str) -> Binding:
    static = binding_named(main, name)
    if static.dynamic is not None:
        return static
    dynamic = layers.bindings.get(name, static)
    names = ("dynamic", "mixed_weights", "group_scales", "refuse_dynamic", "prefer_float")
    return replace(static, **{n: getattr(dynamic, n) for n in names})
