"""The graph of a dynamic model: traced over the layers of a module tree, whose layers it replaces and gives back."""

from __future__ import annotations

import inspect
import typing
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from ...backends.base.backend import Backend, binding_of
from ...backends.base.dynamic_layer import DynamicLayer
from ...backends.ops.table import OPS
from ...passes.dynamic.absorb_relus import AbsorbRelus
from ...passes.dynamic.last_layers import raise_last_layers
from ...passes.dynamic.layer_maker import LayerMaker
from ...passes.dynamic.plan import LayerPlan
from ...passes.dynamic.projected_attention import ProjectedAttention
from ...passes.dynamic.swap import MergedPart, SwapLayers
from ...passes.rewrites.eliminate_noops import EliminateNoops
from ...passes.rewrites.merge_linears import MergeLinears
from ...passes.runner import PassRunner
from ..capture.capture import capture, leaves
from ..capture.constants import evaluate_constants
from ..capture.copies import copy_for_inference
from ..capture.export import export
from ..capture.graph_checks import refuse_state
from ..capture.normalize import normalize
from ..core.errors import CaptureError
from ..core.progress import stage
from ..execution.interface import ANY_CALL, Interface
from ..execution.sample import Batch
from ..report.dynamic_report import GraphPart
from .capture_model import has_whole_attention
from .options import Options


@dataclass(frozen=True)
class TracedModel:
    """A graph over the layers of a module tree.

    Attributes:
        gm: the graph.
        runner: runs the passes over it.
        backend: what the layers are for.
        interface: the calls that the graph holds for.
    """

    gm: fx.GraphModule
    runner: PassRunner
    backend: Backend
    interface: Interface = ANY_CALL


def trace_over(model: nn.Module, tree: nn.Module, options: Options) -> tuple[TracedModel | None, str]:
    """The graph of ``model`` over the layers of ``tree``, or None and the reason why there is none."""
    row = OPS.find(type(model))
    if row is not None and binding_of(options.backend, row).dynamic is not None:
        return None, ""  # a single layer
    leaves(model, options.leaf_modules)
    reason = _varying_inputs(model)
    if reason and options.example is None:
        return None, reason
    try:
        with stage("capture"):
            gm, interface = _captured(tree, options, bool(reason))
    except CaptureError as error:
        return None, str(error).splitlines()[0]
    runner = options.new_runner()
    runner.snapshot("capture", gm)
    runner.run(EliminateNoops(), gm)
    return TracedModel(gm, runner, options.backend, interface), ""


def _captured(tree: nn.Module, options: Options, varies: bool) -> tuple[fx.GraphModule, Interface]:
    """The graph of a call: by ``torch.fx``, or by ``torch.export`` on the example.

    Args:
        varies: forward() may branch on what it is given.

    Raises:
        CaptureError: neither can.
    """
    traced, reason = None, CaptureError("forward() may branch on what it is given.")
    if not varies:
        try:
            traced = capture(tree, options.leaf_modules, share_parameters=True)
        except CaptureError as error:
            reason = error
    example = options.example if not options.leaf_modules else None  # torch.export knows none
    if example is not None and (traced is None or has_whole_attention(traced)):
        try:
            return _exported(tree, example)
        except CaptureError as error:
            reason = error
    if traced is None:
        raise reason
    _share_layers(traced, tree)
    normalize(traced)
    return traced, ANY_CALL


def _exported(tree: nn.Module, example: Batch) -> tuple[fx.GraphModule, Interface]:
    refuse_state(tree, example)
    # A copy, as torch.export may leave what it traced with in the tree, which runs the calls of other kinds.
    gm, interface = export(copy_for_inference(tree, share_parameters=True), example)
    _share_layers(gm, tree)
    evaluate_constants(gm)
    normalize(gm, at_owners=True)
    return gm, interface


def _share_layers(gm: fx.GraphModule, tree: nn.Module) -> None:
    """Let a graph hold the layers, parameters and buffers of ``tree`` in place of its own.

    Modules with children are not shared, as their layers will be replaced in graph and tree separately.
    """
    inside = dict(tree.named_modules())
    for path, module in list(gm.named_modules()):
        own = inside.get(path)
        if path and own is not None and type(own) is type(module) and not module._modules:
            gm.set_submodule(path, own)
            continue
        for kept, given in ((module._parameters, own and own._parameters), (module._buffers, own and own._buffers)):
            kept.update({name: given[name] for name in kept if given and name in given})


def _varying_inputs(model: nn.Module) -> str:
    """Why forward() may branch on its inputs, as far as its signature tells; "" if it does not."""
    try:
        hints = typing.get_type_hints(model.forward)
    except Exception:  # names that only type checkers know
        hints = {}
    for name, parameter in inspect.signature(model.forward).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            return f"forward() takes any number of inputs ({parameter})"
        varies = parameter.default is None or isinstance(parameter.default, bool)
        if varies or hints.get(name, Any) not in (Any, Tensor):
            return f"forward() may branch on the type of '{name}'"
    return ""


def replace_in_graph(traced: TracedModel, plan: LayerPlan, maker: LayerMaker) -> None:
    """Merge the layers of a graph, and replace those that the plan asks for."""
    gm, runner = traced.gm, traced.runner
    merge = MergeLinears({path: request.kind for path, request in plan.requests.items()}.get)
    runner.run(merge, gm)
    _update_merged(plan, merge.merged, gm)
    raise_last_layers(gm, plan, traced.backend)
    runner.run(AbsorbRelus(plan), gm)
    runner.run(SwapLayers(maker, plan), gm)


def _update_merged(plan: LayerPlan, merged: dict[str, list[str]], gm: fx.GraphModule) -> None:
    """Let a plan ask for merged layers in place of their parts."""
    plan.merged = merged
    for path, parts in merged.items():
        plan.requests[path] = plan.requests[parts[0]]
    left = {path for path, _ in gm.named_modules(remove_duplicate=False)}
    plan.requests = {path: request for path, request in plan.requests.items() if path in left}


def adopt_layers(tree: nn.Module, graph: GraphPart) -> None:
    """Give ``tree`` the layers of its graph: the same ones, or parts of those that they were merged into.

    A ReLU that a layer includes is applied again in the tree, which changes nothing.
    """
    places = dict(tree.named_modules(remove_duplicate=False))
    taken: dict[nn.Module, nn.Module] = {}
    for path, module in graph.module.named_modules():
        if path in places and isinstance(module, DynamicLayer | ProjectedAttention):
            taken[places[path]] = module
    for path, parts in graph.plan.merged.items():
        start = 0
        for part in parts:
            size = int(places[part].out_features)
            taken[places[part]] = MergedPart(graph.module.get_submodule(path), start, size)
            start += size
    for path, module in places.items():
        if path and module in taken:
            tree.set_submodule(path, taken[module])
