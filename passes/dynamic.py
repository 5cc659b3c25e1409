"""Dynamic quantization: float layers of a module tree give way to ones with int8 or fp16 weights, where they stand.

Weights are rounded once, activations as they come (their range is that of the tensor at hand), so no data is needed.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from ..backends.base import Backend, IntegerWeight, OpRule, OpTable, Output
from ..backends.dynamic import DynamicLayer, Layer, weight_names
from ..backends.units import match_units
from ..compiler.config import DYNAMIC_FORMS, QuantConfig
from ..compiler.errors import ConfigError
from ..compiler.overrides import ResolvedConfig
from .sharing import Sharing
from .verify import verify_layer
from .weights import quantize_weight

LARGEST_HALF = torch.finfo(torch.float16).max
NAMES = {dtype: name for name, dtype in DYNAMIC_FORMS.items()}


@dataclass(frozen=True)
class Wish:
    """What a layer is to become: weights of ``dtype``, rounded as ``config`` says; ``overridden``: by an override."""

    dtype: torch.dtype
    config: QuantConfig
    overridden: bool = False

    @property
    def kind(self) -> tuple[torch.dtype, str]:
        """Equal for layers that are rounded alike."""
        return self.dtype, repr(self.config)


@dataclass
class LayerPlan:
    """What becomes of the layers of a tree, by path.

    Attributes:
        wishes: those to be replaced.
        relus: those that do the ReLU behind them, too.
        reasons: why others are left in fp32, or have another type than was asked for.
        floats: the layers that were replaced, once they are.
        followed: what :meth:`ask` was called for and gave a wish.
    """

    wishes: dict[str, Wish] = field(default_factory=dict)
    relus: frozenset[str] = frozenset()
    reasons: dict[str, str] = field(default_factory=dict)
    floats: dict[str, nn.Module] = field(default_factory=dict)
    followed: set[Hashable] = field(default_factory=set)

    def ask(self, path: str, layer: nn.Module, wish: Wish, table: OpTable, subject: Hashable) -> None:
        """Wish for ``layer``, if it has weights, or keep the reason why not; overrides spoke of ``subject``."""
        if not weight_names(layer):
            return
        reason = refusal(table.find(type(layer)), layer, wish.dtype, table)
        if reason:
            self.reasons.setdefault(path, reason)
        else:
            self.wishes[path] = wish
            self.followed.add(subject)


def refuse_vain(config: QuantConfig, resolved: ResolvedConfig, plan: LayerPlan) -> None:
    """Refuse an override that names a type of weights which no layer under it can have.

    Raises:
        ConfigError: says why not.
    """
    for key, value in config.overrides.items():
        named = [k for k, v in resolved.keys.items() if v == key]
        if isinstance(value, str) and named and plan.followed.isdisjoint(named):
            paths = [str(n.target) if isinstance(n, fx.Node) else str(n) for n in named]
            why = next((plan.reasons[p] for p in paths if p in plan.reasons), "it names no layer with weights")
            raise ConfigError(f"Override of {key!r} asks for {value!r}, which nothing there can be: {why}.")


def refusal(rule: OpRule | None, module: nn.Module, dtype: torch.dtype, table: OpTable) -> str | None:
    """Why ``module`` cannot have weights of ``dtype``; None if it can."""
    if rule is None:
        return f"fxquant knows no layer {type(module).__name__}"
    if dtype not in rule.dynamic:
        others = [repr(NAMES[d]) for d in rule.dynamic]
        if others:
            return f"no kernel for {rule.name} with {_weights(dtype)}; it has {', '.join(others)}"
        known = ", ".join(r.name for r in table.rows if dtype in r.dynamic)
        return f"no kernel for {rule.name} with {_weights(dtype)}; there are for {known}"
    reason = rule.refuse_dynamic(module) if rule.refuse_dynamic else None
    if reason is None and dtype == torch.float16:
        largest = max(float(module.get_parameter(n).abs().max()) for n in weight_names(module))
        reason = f"a weight of {largest:.3g} is beyond the range of fp16" if largest > LARGEST_HALF else None
    return reason


def _weights(dtype: torch.dtype) -> str:
    return f"{str(dtype).removeprefix('torch.')} weights"


class Swap:
    """The replacement of layers of one tree.

    A layer that stands at several places is replaced by one; weights that several layers share are rounded once.

    Args:
        backend: whose layers take their place.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._done: dict[nn.Module, DynamicLayer] = {}
        self._weights: dict[tuple[int, torch.dtype, str], IntegerWeight | Tensor] = {}

    def __call__(self, tree: nn.Module, plan: LayerPlan) -> nn.Module:
        """Replace what the plan wishes for, and return the tree: another where it is a layer itself."""
        plan.floats |= {path: tree.get_submodule(path) for path in plan.wishes}
        found = {path: (plan.floats[path], wish) for path, wish in plan.wishes.items()}
        # Tables last: shared with a matrix, they take its integers, which the matrix's kernel bounds.
        ordered = sorted(found, key=lambda p: self._rule(found[p][0]).output is Output.WEIGHT_ONLY)
        for path in ordered:
            module, wish = found[path]
            if module not in self._done:
                rule = self._rule(module)
                weights = {name: self._weight(module, name, rule, wish) for name in weight_names(module)}
                layer = Layer(rule, module, weights, path in plan.relus)
                self._done[module] = self.backend.dynamic(layer)
                verify_layer(layer, self._done[module])
            if not path:
                return self._done[module]
            tree.set_submodule(path, self._done[module])
        return tree

    def _rule(self, module: nn.Module) -> OpRule:
        rule = self.backend.table.find(type(module))
        assert rule is not None
        return rule

    def _weight(self, module: nn.Module, name: str, rule: OpRule, wish: Wish) -> IntegerWeight | Tensor:
        parameter = module.get_parameter(name)
        # By identity: the parameter lives as long as its module, which _done holds.
        key = (id(parameter), *wish.kind)
        if key not in self._weights:
            if wish.dtype == torch.float16:
                self._weights[key] = parameter.detach().half()
            else:
                self._weights[key] = quantize_weight(module, rule, wish.config, self.backend, name=name)
        return self._weights[key]


def absorb_relus(gm: fx.GraphModule, plan: LayerPlan, table: OpTable) -> None:
    """Drop each ReLU that the kernel of the planned layer before it can do."""
    sharing = Sharing(gm)
    for unit in match_units(gm, table).units:
        path = str(unit.root.target)
        if path not in plan.wishes or not unit.rule.weighted or len(unit.nodes) != 2:
            continue
        clamp = table.of(unit.output, {})
        alone = sharing.reason(gm.get_submodule(path), path) is None
        if clamp is not None and clamp.name == "relu" and alone:
            unit.output.replace_all_uses_with(unit.root)
            gm.graph.erase_node(unit.output)
            plan.relus |= {path}
