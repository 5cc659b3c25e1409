"""Dynamic quantization: float layers of a module tree give way to ones with int8 or fp16 weights, where they stand.

Weights are rounded once, activations as they come (their range is that of the tensor at hand), so no data is needed.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from ..backends.base import Backend, IntegerWeight, OpRule, OpTable, Output
from ..backends.dynamic import DynamicLayer, Layer, weight_names
from ..backends.units import match_units
from ..compiler.config import QuantConfig
from ..compiler.errors import ConfigError
from ..compiler.overrides import ResolvedConfig, module_path
from .sharing import HOOKED, Sharing, is_hooked
from .verify import LEAST_SQNR, layer_sqnr
from .weights import quantize_weight

HALF = torch.finfo(torch.float16)


@dataclass(frozen=True)
class Wish:
    """What a layer is to become: weights of ``dtype``, rounded as ``config`` says; ``overridden``: by an override."""

    dtype: torch.dtype
    config: QuantConfig
    overridden: bool = False

    @property
    def kind(self) -> tuple[torch.dtype, str, bool]:
        """Equal for layers that are rounded alike."""
        return self.dtype, repr(self.config), self.overridden


@dataclass
class LayerPlan:
    """What becomes of the layers of a tree, by path.

    Attributes:
        wishes: those to be replaced.
        relus: those that do the ReLU behind them, too.
        merged: the paths of the layers that became one, by its path.
        reasons: why others are left in fp32, or have another type than was asked for.
        floats: the layers that were replaced, once they are.
        followed: what :meth:`ask` was called for and gave a wish.
    """

    wishes: dict[str, Wish] = field(default_factory=dict)
    relus: frozenset[str] = frozenset()
    merged: dict[str, list[str]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    floats: dict[str, nn.Module] = field(default_factory=dict)
    followed: set[Hashable] = field(default_factory=set)

    def ask(self, path: str, layer: nn.Module, wish: Wish, table: OpTable, subject: Hashable) -> None:
        """Wish for ``layer``, if it has weights, or keep the reason why not; overrides spoke of ``subject``."""
        if parametrize.is_parametrized(layer):
            self.reasons.setdefault(path, "a parametrization computes its weight: remove that first")
        if not weight_names(layer) or ".parametrizations." in path:
            return
        reason = refusal(table.find(type(layer)), layer, wish.dtype, table)
        if reason:
            self.reasons.setdefault(path, reason)
        else:
            self.wishes[path] = wish
            self.followed.add(subject)


def refuse_vain(config: QuantConfig, resolved: ResolvedConfig, *plans: LayerPlan) -> None:
    """Refuse an override that names a type of weights which no layer under it can have.

    Raises:
        ConfigError: says why not.
    """
    for key, value in config.overrides.items():
        named = [k for k, v in resolved.keys.items() if v == key]
        if isinstance(value, str) and named and all(plan.followed.isdisjoint(named) for plan in plans):
            paths = [str(n.target) if isinstance(n, fx.Node) else str(n) for n in named]
            found = (plan.reasons[p] for plan in plans for p in paths if p in plan.reasons)
            why = next(found, "it names no layer whose weights are matrices")
            raise ConfigError(f"Override of {key!r} asks for {value!r}, which nothing there can be: {why}.")


def refusal(rule: OpRule | None, module: nn.Module, dtype: torch.dtype, table: OpTable) -> str | None:
    """Why ``module`` cannot have weights of ``dtype``; None if it can."""
    if rule is None:
        return f"fxquant knows no layer {type(module).__name__}"
    if rule.dynamic is None:
        known = ", ".join(r.name for r in table.rows if r.dynamic is not None)
        return f"no kernel for {rule.name} with {str(dtype).removeprefix('torch.')} weights; there are for {known}"
    names = weight_names(module)
    if any(name.endswith(("_orig", "_g", "_v")) for name in names):
        return "a hook computes its weight: remove that first"
    if is_hooked(module):
        return HOOKED
    weights = [module.get_parameter(name) for name in names]
    if not all(w.numel() for w in weights):
        return "it has no weights"
    reason = rule.refuse_dynamic(module) if rule.refuse_dynamic else None
    if reason is None and dtype == torch.float16:
        largest = max(float(w.detach().abs().max()) for w in weights)
        if largest > HALF.max or 0 < largest < HALF.tiny:
            reason = f"its largest weight, {largest:.3g}, is out of the range of fp16"
    return reason


class MergedPart(nn.Module):
    """The part of a merged layer that was a layer: for a forward that calls those one by one.

    Args:
        whole: the merged layer.
        start, size: where the part lies in its output.
    """

    def __init__(self, whole: nn.Module, start: int, size: int) -> None:
        super().__init__()
        self.whole, self.start, self.out_features = whole, start, size

    def forward(self, input: Tensor) -> Tensor:
        part: Tensor = self.whole(input).narrow(-1, self.start, self.out_features)
        return part.contiguous()


class Swap:
    """The replacement of layers of one tree.

    A layer that stands at several places is replaced by one; weights that several layers share are rounded once.

    Args:
        backend: whose layers take their place.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._done: dict[nn.Module, DynamicLayer | None] = {}
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
                self._done[module] = self._made(path, module, wish, plan)
            made = self._done[module]
            if made is None:
                del plan.wishes[path], plan.floats[path]
                if path in plan.relus:
                    tree.set_submodule(path, nn.Sequential(module, nn.ReLU()))
            elif not path:
                return made
            else:
                tree.set_submodule(path, made)
        return tree

    def _made(self, path: str, module: nn.Module, wish: Wish, plan: LayerPlan) -> DynamicLayer | None:
        """What takes the place of ``module``; None, and the reason in the plan, if it does not give the same."""
        rule = self._rule(module)
        weights = {name: self._weight(module, name, rule, wish) for name in weight_names(module)}
        layer = Layer(rule, module, weights, path in plan.relus)
        made = self.backend.dynamic(layer)
        decibels = layer_sqnr(layer, made)
        if decibels >= LEAST_SQNR:
            return made
        plan.reasons[path] = f"its {made.kernel} is at {decibels:.0f} dB on random inputs, of {LEAST_SQNR} asked for"
        return None

    def _rule(self, module: nn.Module) -> OpRule:
        rule = self.backend.table.find(type(module))
        assert rule is not None
        return rule

    def _weight(self, module: nn.Module, name: str, rule: OpRule, wish: Wish) -> IntegerWeight | Tensor:
        parameter = module.get_parameter(name)
        # By identity: the parameter lives as long as its module, which _done holds.
        key = (id(parameter), wish.dtype, repr(wish.config))
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
        left = module_path(unit.output) in plan.reasons  # an override speaks of the ReLU
        if clamp is not None and clamp.name == "relu" and alone and not left:
            unit.output.replace_all_uses_with(unit.root)
            gm.graph.erase_node(unit.output)
            plan.relus |= {path}
