"""The workflow ``scheme="dynamic"``: weights int8 or fp16, activations quantized on the fly, no data."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..backends.dynamic import DynamicLayer, weight_names
from ..passes.dynamic import LayerPlan, MergedPart, Swap, Wish, absorb_relus, refuse_vain
from ..passes.eliminate_noops import EliminateNoops
from ..passes.last_layers import raise_last
from ..passes.merge_linears import MergeLinears
from .attention import ProjectedAttention, take_attention_apart
from .capture import capture, copied, leaves
from .config import SWITCHES, QuantConfig
from .errors import CaptureError, ConfigError, ModelError
from .normalize import normalize
from .overrides import ResolvedConfig, Subject, module_subject, node_subject, resolve
from .work import Options, Work

NEEDS_DATA = (*SWITCHES, "relu6_as_relu")


@dataclass(frozen=True)
class Dynamic:
    """A finished model.

    Attributes:
        tree: a copy of the model with its layers replaced.
        work: its graph over the same layers, with notes and snapshots; None where it could not be traced.
        plan: what was done to the layers of the graph, and why not.
        rest: the same for those that it does not call; for all of them without a graph.
        untraced: why there is no graph; "" if there is, or none is needed.
    """

    tree: nn.Module
    work: Work | None
    plan: LayerPlan
    rest: LayerPlan
    untraced: str

    @property
    def rounds_alike(self) -> bool:
        """Whether graph and tree have the same layers: not where the graph has a function over a weight as a layer."""
        inside = {path for path, _ in self.tree.named_modules(remove_duplicate=False)}
        return all(path in inside or path in self.plan.merged for path in self.plan.wishes)


def quantize_dynamic(model: nn.Module, options: Options, dtype: torch.dtype) -> Dynamic:
    """Replace every layer that has a kernel for ``dtype`` in a copy of ``model``, and in its graph.

    Raises:
        ConfigError: what is asked for needs data, or has no kernel.
        ModelError: there is nothing to quantize.
    """
    check_config(options.config, dtype)
    # Not the copy that is traced: tracing leaves its marks on a model that keeps state.
    tree = copied(model).eval().requires_grad_(False)
    work, untraced = _traced(model, tree, options)
    config = _resolved(model, tree if work is None else work.gm, options)
    swap = Swap(options.backend)
    plan = LayerPlan() if work is None else _replace_in_graph(work, tree, config, dtype, swap)
    # What is left: all of it without a graph, else what the traced way does not meet.
    tree, rest = _plan(tree, config, options, dtype)
    tree = swap(tree, rest)
    refuse_vain(options.config, config, plan, rest)
    if not plan.wishes and not rest.wishes:
        reasons = list((plan.reasons | rest.reasons).items())[:10]
        listed = "\n".join(f"  {path or '(root)'}: {reason}" for path, reason in reasons)
        raise ModelError(f"The model has nothing to quantize.\n{listed}")
    return Dynamic(tree, work, plan, rest, untraced)


def _replace_in_graph(work: Work, tree: nn.Module, config: ResolvedConfig, dtype: torch.dtype, swap: Swap) -> LayerPlan:
    """Merge and replace the layers of a graph, and give ``tree`` the same."""
    table = work.options.backend.table
    _, plan = _plan(work.gm, config, work.options, dtype)
    _merge(work, plan)
    raise_last(work.gm, plan, table)
    absorb_relus(work.gm, plan, table)
    swap(work.gm, plan)
    work.gm.recompile()
    work.snapshot("swap")
    _adopt(tree, work.gm, plan)
    return plan


def check_config(config: QuantConfig, dtype: torch.dtype) -> None:
    """Refuse what dynamic quantization cannot do.

    Raises:
        ConfigError: it needs data, or has no kernel.
    """
    for entry in (config, *(o for o in config.overrides.values() if isinstance(o, QuantConfig))):
        for name in NEEDS_DATA:
            if getattr(entry, name) is True:
                raise ConfigError(f"{name}=True is for scheme 'static', which has calibration data; leave it out.")
        if entry.rounding != "nearest":
            raise ConfigError("rounding='learned' needs calibration data: use scheme 'static', or rounding='nearest'.")
        if entry.activation != "per_tensor_affine":
            raise ConfigError(
                f"activation={entry.activation!r} has no dynamic kernel: use 'per_tensor_affine', or scheme 'static'."
            )
    if dtype == torch.float16 and (config.weight_bits != 8 or config.weight != QuantConfig.weight):
        raise ConfigError("weight and weight_bits are for integers: leave them out with dtype=torch.float16.")


def _traced(model: nn.Module, tree: nn.Module, options: Options) -> tuple[Work | None, str]:
    """The graph of ``model`` over the layers of ``tree``, or why there is none."""
    rule = options.backend.table.find(type(model))
    if rule is not None and rule.dynamic is not None:
        return None, ""  # a layer by itself
    leaves(model, options.leaf_modules)
    reason = _varying_inputs(model)
    if reason:
        return None, reason
    try:
        gm = capture(model, options.leaf_modules)
        _share(gm, tree)
        normalize(gm, options.backend.table)
    except CaptureError as error:
        return None, str(error).splitlines()[0]
    work = Work(gm, options, 0)
    work.snapshot("capture")
    work.apply(EliminateNoops())
    return work, ""


def _share(gm: fx.GraphModule, tree: nn.Module) -> None:
    """Have a graph hold the modules, parameters and buffers of ``tree`` in place of its own."""
    inside = dict(tree.named_modules())
    for path, module in list(gm.named_modules()):
        if path and type(inside.get(path)) is type(module):
            gm.set_submodule(path, inside[path])
            continue
        own = inside.get(path)
        for kept, given in ((module._parameters, own and own._parameters), (module._buffers, own and own._buffers)):
            kept.update({name: given[name] for name in kept if given and name in given})


def _varying_inputs(model: nn.Module) -> str:
    """Why the forward may branch on what it is given, as far as its signature tells; "" if it tells nothing."""
    try:
        hints = typing.get_type_hints(model.forward)
    except Exception:  # names that are known to type checkers only
        hints = {}
    for name, parameter in inspect.signature(model.forward).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            return f"forward takes any number of inputs ({parameter})"
        varies = parameter.default is None or isinstance(parameter.default, bool)
        if varies or hints.get(name, Any) not in (Any, Tensor):
            return f"forward may branch on what is given for '{name}'"
    return ""


def _resolved(model: nn.Module, graph: nn.Module, options: Options) -> ResolvedConfig:
    """The overrides by module path, those of the graph's own modules included.

    Raises:
        ConfigError: one matches nothing, or two disagree on one layer.
    """
    table = options.backend.table
    before = dict(model.named_modules(remove_duplicate=False))
    known = dict(graph.named_modules(remove_duplicate=False)) | before  # a graph keeps no classes of containers
    subjects: dict[Hashable, Subject] = {}
    for path, module in known.items():
        rule = table.find(type(module))
        subjects[path] = module_subject(path, known, rule.name if rule else "")
    for node in graph.graph.nodes if isinstance(graph, fx.GraphModule) else ():
        rule = table.of(node, {}) if node.op == "call_function" else None
        if rule is not None:
            subjects[node] = node_subject(node, rule.name)
    config = resolve(options.config, subjects)
    places: dict[nn.Module, list[str]] = {}
    for path, module in before.items():
        places.setdefault(module, []).append(path)
    for paths in places.values():
        if len({repr(config.by_subject.get(p)) for p in paths}) > 1 and weight_names(before[paths[0]]):
            raise ConfigError(f"{' and '.join(map(repr, paths))} are one layer: give them one override.")
    return config


def _plan(
    graph: nn.Module, config: ResolvedConfig, options: Options, dtype: torch.dtype
) -> tuple[nn.Module, LayerPlan]:
    """What the configuration asks for, and what has kernels, of ``graph`` with its attentions taken apart."""
    graph, whole = take_attention_apart(graph, lambda path: config.of(config.nearest(path)) is not None)
    plan = LayerPlan(reasons=whole)
    for path, module in graph.named_modules(remove_duplicate=False):
        subject = config.nearest(path)
        chosen, own = config.of(subject), config.key_of(subject) is not None
        if chosen is None and (weight_names(module) or not list(module.children())):
            plan.reasons[path] = f"left in fp32 by override {config.key_of(subject)!r}"
        elif chosen is not None:
            asked = config.dynamic(subject) or (torch.int8 if own else dtype)
            plan.ask(path, module, Wish(asked, chosen, overridden=own), options.backend.table, subject)
    return graph, plan


def _merge(work: Work, plan: LayerPlan) -> None:
    """One wide layer for those that read one value and become alike."""
    merge = MergeLinears({path: wish.kind for path, wish in plan.wishes.items()}.get)
    work.note(merge(work.gm, work.options.backend.table))
    work.snapshot(merge.name)
    plan.merged = merge.merged
    for path, parts in plan.merged.items():
        plan.wishes[path] = plan.wishes[parts[0]]
    left = {path for path, _ in work.gm.named_modules(remove_duplicate=False)}
    plan.wishes = {path: wish for path, wish in plan.wishes.items() if path in left}


def _adopt(tree: nn.Module, gm: fx.GraphModule, plan: LayerPlan) -> None:
    """Give ``tree`` the layers of its graph: the same, or parts of what they were merged into.

    A ReLU that a layer does for the graph is done again in the tree, which changes nothing.
    """
    places = dict(tree.named_modules(remove_duplicate=False))
    taken: dict[nn.Module, nn.Module] = {}
    for path, module in gm.named_modules():
        if path in places and isinstance(module, DynamicLayer | ProjectedAttention):
            taken[places[path]] = module
    for path, parts in plan.merged.items():
        start = 0
        for part in parts:
            size = int(places[part].out_features)
            taken[places[part]] = MergedPart(gm.get_submodule(path), start, size)
            start += size
    for path, module in places.items():
        if path and module in taken:
            tree.set_submodule(path, taken[module])
