"""The workflow ``scheme="dynamic"``: weights int8 or fp16, activations quantized on the fly, no data."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import fx, nn

from ..backends.base import OpTable
from ..backends.dynamic import weight_names
from ..passes.dynamic import LayerPlan, Swap, Wish, absorb_relus, refusal, refuse_vain
from ..passes.merge_linears import MergeLinears
from .attention import take_attention_apart
from .capture import copied
from .config import QuantConfig
from .errors import CaptureError, ConfigError, ModelError
from .overrides import module_subject, resolve
from .pipeline import Options, Work, start

# Of the weights: what may be fp16 next to the output, where no layer behind dampens the error of rounding.
LAST_SHARE = 0.02
NEEDS_DATA = ("equalize", "smooth", "absorb_bias", "correct_bias")


@dataclass(frozen=True)
class Dynamic:
    """A finished module.

    Attributes:
        tree: it runs; a graph if the model could be traced, else a copy of the model.
        plan: what was done to its layers, and why not.
        untraced: why there is no graph; "" if there is.
        work: the graph's notes and snapshots; None without a graph.
    """

    tree: nn.Module
    plan: LayerPlan
    untraced: str
    work: Work | None


def quantize_dynamic(model: nn.Module, options: Options, dtype: torch.dtype) -> Dynamic:
    """Replace every layer that has a kernel for ``dtype`` in a copy of ``model``.

    Raises:
        ConfigError: what is asked for needs data, or has no kernel.
        ModelError: there is nothing to quantize.
    """
    check_config(options.config, dtype)
    work, untraced = _traced(model, options)
    tree = copied(model).eval() if work is None else work.gm
    tree, whole = take_attention_apart(tree)
    plan = _plan(model, tree, options, dtype)
    plan.reasons |= whole
    if not plan.wishes:
        reasons = "\n".join(f"  {path or '(root)'}: {reason}" for path, reason in list(plan.reasons.items())[:10])
        raise ModelError(f"The model has nothing to quantize.\n{reasons}")
    if work is not None:
        _merge(work, plan)
        _raise_last(work.gm, plan, options.backend.table)
        absorb_relus(work.gm, plan, options.backend.table)
    tree = Swap(options.backend)(tree, plan)
    if work is not None:
        work.gm.recompile()
        work.snapshot("swap")
    return Dynamic(tree, plan, untraced, work)


def check_config(config: QuantConfig, dtype: torch.dtype) -> None:
    """Refuse what dynamic quantization cannot do.

    Raises:
        ConfigError: it needs data, or has no kernel.
    """
    for entry in (config, *(o for o in config.overrides.values() if isinstance(o, QuantConfig))):
        for name in NEEDS_DATA:
            if getattr(entry, name) is True:
                raise ConfigError(
                    f"{name}=True needs calibration data, which scheme 'dynamic' has none of: use 'static'."
                )
        if entry.rounding != "nearest":
            raise ConfigError("rounding='learned' needs calibration data: use scheme 'static', or rounding='nearest'.")
        if entry.activation != "per_tensor_affine":
            raise ConfigError(
                f"activation={entry.activation!r} has no dynamic kernel: use 'per_tensor_affine', or scheme 'static'."
            )
    if dtype == torch.float16 and (config.weight_bits != 8 or config.weight != QuantConfig.weight):
        raise ConfigError("weight and weight_bits are for integers: leave them out with dtype=torch.float16.")


def _traced(model: nn.Module, options: Options) -> tuple[Work | None, str]:
    """The folded graph of ``model``, or why there is none.

    No example is at hand that would show a graph that took the wrong branch, so a forward that may branch on what it is
    given is left alone.
    """
    for name, parameter in inspect.signature(model.forward).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            return None, f"forward takes any number of inputs ({parameter})"
        if parameter.default is None or isinstance(parameter.default, bool):
            return None, f"forward may branch on whether '{name}' is given"
    try:
        return start(model, options), ""
    except CaptureError as error:
        return None, str(error).splitlines()[0]


def _plan(model: nn.Module, tree: nn.Module, options: Options, dtype: torch.dtype) -> LayerPlan:
    """What the configuration asks for, and what has kernels.

    Raises:
        ConfigError: an override asks for a form that none of its layers has.
    """
    table = options.backend.table
    before, paths = dict(model.named_modules(remove_duplicate=False)), dict(tree.named_modules(remove_duplicate=False))
    known = paths | before  # a graph keeps no classes of containers
    rules = {path: table.find(type(module)) for path, module in paths.items()}
    names = {path: rule.name if rule else "" for path, rule in rules.items()}
    config = resolve(options.config, {p: module_subject(p, known, names.get(p, "")) for p in known})
    plan = LayerPlan()
    for path, module in paths.items():
        chosen = config.of(path)
        if chosen is None:
            plan.reasons[path] = f"left in fp32 by override {config.key_of(path)!r}"
        else:
            own = config.key_of(path) is not None
            asked = config.dynamic(path) or (torch.int8 if own else dtype)
            plan.ask(path, module, Wish(asked, chosen, overridden=own), table, path)
    refuse_vain(options.config, config, plan)
    return plan


def _merge(work: Work, plan: LayerPlan) -> None:
    """One wide layer for those that read one value and become alike."""
    kinds = {path: wish.kind for path, wish in plan.wishes.items()}
    result = MergeLinears(kinds.get)(work.gm, work.options.backend.table)
    work.note(result)
    work.snapshot(MergeLinears.name)
    for node in result.remarks:
        path = str(node.target)
        plan.wishes[path] = plan.wishes[path.removesuffix(MergeLinears.suffix)]
    left = {path for path, _ in work.gm.named_modules(remove_duplicate=False)}
    plan.wishes = {path: wish for path, wish in plan.wishes.items() if path in left}


def _raise_last(gm: fx.GraphModule, plan: LayerPlan, table: OpTable) -> None:
    """fp16 for the int8 layers nearest to the output, while they hold next to none of the weights."""
    sizes = {
        p: sum(gm.get_submodule(p).get_parameter(n).numel() for n in weight_names(gm.get_submodule(p)))
        for p in plan.wishes
    }
    total = sum(sizes.values())
    budget = LAST_SHARE * total
    behind: set[str] = set()
    while True:
        front = set(_last_layers(gm, plan.wishes, behind))
        front_size = sum(sizes[p] for p in front)
        fits = front and front_size <= budget
        if not fits or any(not _may_be_half(gm, p, plan.wishes[p], table) for p in front):
            return
        for path in front:
            plan.wishes[path] = Wish(torch.float16, plan.wishes[path].config)
            share = f"{sizes[path] / total:.1%} of the weights"
            plan.reasons[path] = f"fp16, not int8: near the output, where nothing dampens its error, with {share}"
        behind |= front
        budget -= front_size


def _may_be_half(gm: fx.GraphModule, path: str, wish: Wish, table: OpTable) -> bool:
    module = gm.get_submodule(path)
    wanted = wish.dtype == torch.int8 and not wish.overridden
    return wanted and refusal(table.find(type(module)), module, torch.float16, table) is None


def _last_layers(gm: fx.GraphModule, wishes: Mapping[str, Wish], behind: set[str]) -> Iterator[str]:
    """Layers from which a way leads to the output that meets none but those of ``behind``."""
    front, seen = [n for n in gm.graph.nodes if n.op == "output"], set()
    while front:
        node = front.pop()
        if node in seen:
            continue
        seen.add(node)
        inside = [p for p in wishes if node.op == "call_module" and f"{p}.".startswith(f"{node.target}.")]
        new = [p for p in inside if p not in behind]
        yield from new
        if not new:
            front += node.all_input_nodes
