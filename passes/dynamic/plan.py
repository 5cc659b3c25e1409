"""Which layers become layers with int8 or fp16 weights."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from ...backends.base.backend import Backend, binding_of
from ...backends.base.dynamic_spec import weight_names
from ...backends.ops.table import OPS
from ...compiler.core.config import QuantConfig
from ...compiler.core.errors import ConfigError
from ...compiler.core.overrides import ResolvedConfig
from ...compiler.execution.user_code import is_hooked
from ..layers.sharing import HOOKED

HALF = torch.finfo(torch.float16)


@dataclass(frozen=True)
class LayerRequest:
    """What a layer is to become.

    Attributes:
        dtype: of its weights, ``torch.int8`` or ``torch.float16``.
        config: how they are rounded.
        overridden: an override asks for it.
    """

    dtype: torch.dtype
    config: QuantConfig
    overridden: bool = False

    @property
    def kind(self) -> tuple[torch.dtype, str, bool]:
        """Equal for layers that are rounded in the same way."""
        return self.dtype, repr(self.config), self.overridden


@dataclass
class LayerPlan:
    """What becomes of the layers of a tree, by path.

    Attributes:
        requests: layers to be replaced.
        relus: layers that include the ReLU after them.
        merged: the paths of the layers that became one, by the path of that one.
        reasons: why other layers stay fp32, or get another dtype than was asked for; what of a request was not done.
        floats: the float layers that were replaced, once they are.
        answered: subjects of overrides for which there is a request.
    """

    requests: dict[str, LayerRequest] = field(default_factory=dict)
    relus: frozenset[str] = frozenset()
    merged: dict[str, list[str]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    floats: dict[str, nn.Module] = field(default_factory=dict)
    answered: set[Hashable] = field(default_factory=set)

    def ask(self, path: str, layer: nn.Module, request: LayerRequest, backend: Backend, subject: Hashable) -> None:
        """Add a request for ``layer`` if it has weights and can be replaced; else keep the reason.

        Args:
            subject: what the override was found for.
        """
        if parametrize.is_parametrized(layer):
            self.reasons.setdefault(path, "a parametrization computes its weight: remove that first")
        if not weight_names(layer) or ".parametrizations." in path:
            return
        reason = refusal(layer, request.dtype, backend)
        if reason is None and request.dtype == torch.int8 and not request.overridden:
            reason = _preference(layer, backend)
        if reason:
            self.reasons.setdefault(path, reason)
        else:
            self.requests[path] = request
            self.answered.add(subject)

    def inside(self, path: str) -> bool:
        """Whether the module at ``path`` is to be replaced, or has a layer in it that is."""
        return any(f"{p}.".startswith(f"{path}.") for p in self.requests)


def check_answered(config: QuantConfig, resolved: ResolvedConfig, *plans: LayerPlan) -> None:
    """Refuse an override that asks for weights that no layer it names can have.

    Raises:
        ConfigError: says why not.
    """
    for key, value in config.overrides.items():
        named = [k for k, v in resolved.keys.items() if v == key]
        if isinstance(value, str) and named and all(plan.answered.isdisjoint(named) for plan in plans):
            paths = [str(n.target) if isinstance(n, fx.Node) else str(n) for n in named]
            found = (plan.reasons[p] for plan in plans for p in paths if p in plan.reasons)
            why = next(found, "it names no layer whose weights are matrices")
            raise ConfigError(f"Override of {key!r} asks for {value!r}, but no layer that it names can be that: {why}.")


def refusal(layer: nn.Module, dtype: torch.dtype, backend: Backend) -> str | None:
    """Why ``layer`` cannot have weights of ``dtype``; None if it can."""
    row = OPS.find(type(layer))
    if row is None:
        return f"fxquant knows no layer {type(layer).__name__}"
    binding = binding_of(backend, row)
    if binding.dynamic is None:
        known = ", ".join(name for name, b in backend.bindings.items() if b.dynamic is not None) or "no layer"
        return f"no kernel for {row.name} with {str(dtype).removeprefix('torch.')} weights; there are for {known}"
    names = weight_names(layer)
    if any(name.endswith(("_orig", "_g", "_v")) for name in names):
        return "a hook computes its weight: remove that first"
    if is_hooked(layer):
        return HOOKED
    weights = [layer.get_parameter(name) for name in names]
    if not all(w.numel() for w in weights):
        return "it has no weights"
    reason = binding.refuse_dynamic(layer) if binding.refuse_dynamic else None
    if reason is None and dtype == torch.float16:
        reason = beyond_half(weights)
    return reason


def _preference(layer: nn.Module, backend: Backend) -> str | None:
    """Why ``layer`` is faster in fp32; None if it is not."""
    row = OPS.find(type(layer))
    prefers = binding_of(backend, row).prefer_float if row is not None else None
    return prefers(layer) if prefers else None


def beyond_half(weights: Iterable[Tensor]) -> str | None:
    """Why fp16 cannot hold weights; None if it can."""
    largest = max((float(w.detach().abs().max()) for w in weights), default=0.0)
    if largest > HALF.max or 0 < largest < HALF.tiny:
        return f"its largest weight, {largest:.3g}, is out of the range of fp16"
    return None
