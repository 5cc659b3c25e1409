"""The workflow ``scheme="dynamic"``: weights int8 or fp16, activations quantized at run time, no data."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import fx, nn

from ...backends.base.dynamic_spec import weight_names
from ...backends.base.program import FrozenProgram, copy_program
from ...backends.ops.table import OPS
from ...passes.dynamic.attention import project_attentions
from ...passes.dynamic.layer_maker import LayerMaker
from ...passes.dynamic.plan import LayerPlan, LayerRequest, check_answered
from ...passes.dynamic.swap import swap_in_tree
from ..capture.copies import copy_for_inference
from ..core.config import SWITCHES, QuantConfig
from ..core.errors import ConfigError, ModelError
from ..core.overrides import ResolvedConfig, Subject, module_subject, node_subject, resolve
from ..core.progress import log
from ..execution.graphs import with_nodes
from ..execution.interface import ANY_CALL, Interface
from ..report.dynamic_report import GraphPart, dynamic_report
from ..report.report import Report
from .dynamic_graph import adopt_layers, replace_in_graph, trace_over
from .options import Options

NEEDS_DATA = (*SWITCHES, "relu6_as_relu")


@dataclass(frozen=True)
class DynamicModel:
    """A finished model.

    Attributes:
        tree: a copy of the model with its layers replaced.
        graph: the executed graph over the same layers; None if the model was not traced.
        program: the frozen program; None if the model was not traced.
        report: a row per layer.
        snapshots: the graph after each step, if asked for.
        rounds_alike: graph and tree have the same layers, so that their outputs agree up to fp32 rounding.
        untraced: why there is no graph; "" if there is one, or if none is needed.
        interface: the calls that the graph holds for.
    """

    tree: nn.Module
    graph: fx.GraphModule | None
    program: FrozenProgram | None
    report: Report
    snapshots: dict[str, str]
    rounds_alike: bool
    untraced: str
    interface: Interface


def quantize_dynamic(model: nn.Module, options: Options, dtype: torch.dtype) -> DynamicModel:
    """Replace every layer that has a kernel for ``dtype`` in a copy of ``model``, and in its graph.

    Raises:
        ConfigError: what is asked for needs data, has no kernel, or suits no layer.
        ModelError: there is nothing to quantize.
    """
    check_config(options.config, dtype)
    # Not the copy that is traced: tracing changes a model that keeps state.
    tree = copy_for_inference(model)
    traced, untraced = trace_over(model, tree, options)
    config = _resolve_overrides(model, tree if traced is None else traced.gm, options)
    maker = LayerMaker(options.backend)
    part, program = None, None
    if traced is not None:
        _, plan = plan_layers(traced.gm, config, options, dtype)
        replace_in_graph(traced, plan, maker)
        program = FrozenProgram(traced.gm, ((), {}))
        executed = copy_program(program, maker.compiled)
        part = GraphPart(executed.program.module, plan, with_nodes(traced.runner.notes, executed.of))
        adopt_layers(tree, part)
    # The rest: all layers without a graph, else those that the graph does not call.
    tree, rest = plan_layers(tree, config, options, dtype)
    tree = swap_in_tree(tree, rest, maker)
    plans = [part.plan, rest] if part is not None else [rest]
    check_answered(options.config, config, *plans)
    if not any(plan.requests for plan in plans):
        raise ModelError(_nothing_to_quantize(plans))
    remarks = [layer.remark for layer in maker.made if layer.compiled.dtype == torch.int8]
    if options.config.group_size and remarks and all(remarks):
        raise ConfigError(f"No layer can have group_size={options.config.group_size}: {remarks[0]}. Leave it out.")
    log.info("dynamic: %d layers replaced; %s", sum(len(p.requests) for p in plans), untraced or "traced")
    report = dynamic_report(model, tree, rest, part, untraced)
    snapshots = traced.runner.snapshots if traced is not None else {}
    alike = part is None or _same_layers(tree, part.plan)
    interface = traced.interface if traced is not None else ANY_CALL
    return DynamicModel(tree, part.module if part else None, program, report, snapshots, alike, untraced, interface)


def _same_layers(tree: nn.Module, plan: LayerPlan) -> bool:
    """Whether ``tree`` has all layers of its graph: not if the graph has a function over a weight as a layer."""
    inside = {path for path, _ in tree.named_modules(remove_duplicate=False)}
    return all(path in inside or path in plan.merged for path in plan.requests)


def _nothing_to_quantize(plans: list[LayerPlan]) -> str:
    found = {path: reason for plan in plans for path, reason in plan.reasons.items()}
    listed = "\n".join(f"  {path or '(root)'}: {reason}" for path, reason in list(found.items())[:10])
    return f"The model has nothing to quantize: keep it as it is, or try scheme 'static'.\n{listed}"


def check_config(config: QuantConfig, dtype: torch.dtype) -> None:
    """Refuse what dynamic quantization cannot do.

    Raises:
        ConfigError: it needs data, or has no kernel.
    """
    for entry in (config, *(o for o in config.overrides.values() if isinstance(o, QuantConfig))):
        for name in NEEDS_DATA:
            if getattr(entry, name) is True:
                raise ConfigError(f"{name}=True is for scheme 'static', which has calibration data; leave it out.")
        if entry.observer != QuantConfig.observer:
            raise ConfigError(f"observer={entry.observer!r} is for scheme 'static', which has calibration data.")
        if entry.rounding != "nearest":
            raise ConfigError("rounding='learned' needs calibration data: use scheme 'static', or rounding='nearest'.")
        if entry.activation != "per_tensor_affine":
            raise ConfigError(
                f"activation={entry.activation!r} has no dynamic kernel: use 'per_tensor_affine', or scheme 'static'."
            )
    names = ("weight", "weight_bits", "group_size")
    if dtype == torch.float16 and any(getattr(config, n) != getattr(QuantConfig, n) for n in names):
        raise ConfigError(f"{', '.join(names)} are for integers: leave them out with dtype=torch.float16.")


def _resolve_overrides(model: nn.Module, graph: nn.Module, options: Options) -> ResolvedConfig:
    """The overrides by module path, including those of modules that only the graph has.

    Raises:
        ConfigError: one matches nothing, or two disagree on one layer.
    """
    before = dict(model.named_modules(remove_duplicate=False))
    known = dict(graph.named_modules(remove_duplicate=False)) | before  # a graph keeps no classes of containers
    subjects: dict[Hashable, Subject] = {}
    for path, module in known.items():
        row = OPS.find(type(module))
        subjects[path] = module_subject(path, known, row.name if row else "")
    for node in graph.graph.nodes if isinstance(graph, fx.GraphModule) else ():
        row = OPS.of(node, {}) if node.op == "call_function" else None
        if row is not None:
            subjects[node] = node_subject(node, row.name)
    config = resolve(options.config, subjects)
    places: dict[nn.Module, list[str]] = {}
    for path, module in before.items():
        places.setdefault(module, []).append(path)
    for paths in places.values():
        if len({repr(config.by_subject.get(p)) for p in paths}) > 1 and weight_names(before[paths[0]]):
            raise ConfigError(f"{' and '.join(map(repr, paths))} are the same module: give them the same override.")
    return config


def plan_layers(
    graph: nn.Module, config: ResolvedConfig, options: Options, dtype: torch.dtype
) -> tuple[nn.Module, LayerPlan]:
    """Project the attentions of a module tree, and plan its layers.

    Returns the tree (another module if the tree is an attention itself), and the plan.
    """
    graph, whole = project_attentions(graph, lambda path: config.of(config.nearest(path)) is not None)
    plan = LayerPlan(reasons=whole)
    for path, module in graph.named_modules(remove_duplicate=False):
        subject = config.nearest(path)
        chosen, own = config.of(subject), config.key_of(subject) is not None
        if chosen is None and (weight_names(module) or not list(module.children())):
            plan.reasons[path] = f"left in fp32 by override {config.key_of(subject)!r}"
        elif chosen is not None:
            asked = config.dynamic_dtype(subject) or (torch.int8 if own else dtype)
            plan.ask(path, module, LayerRequest(asked, chosen, overridden=own), options.backend, subject)
    return graph, plan
