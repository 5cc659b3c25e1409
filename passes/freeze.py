"""Freeze: observers become literal quantize/dequantize pairs, weights become integers with their scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import torch
from torch import Tensor, fx, nn

from ..backends.base import Backend, IntegerWeight, OpRule, Output
from ..backends.units import Unit
from ..compiler.observers import DeQuantStub, FixedObserver, Observer, joint_qparams, observer_of
from ..compiler.qdq import dequantize, dequantize_channels, quantize
from ..compiler.types import QParams
from ..compiler.values import attribute
from .assign_precision import Assignment
from .base import finish
from .layer_weight import function_arguments, output_channels
from .weights import quantize_weight


def freeze(
    gm: fx.GraphModule, assignment: Assignment, backend: Backend, trained: Mapping[str, IntegerWeight] | None = None
) -> int:
    """Turn a calibrated graph into the frozen graph. Returns the number of quantized tensors (weights included).

    Every int8 value is a ``quantize`` followed by a ``dequantize`` with literal parameters, every op between
    them a float op, and every quantized weight a ``dequantize_channels`` of an integer buffer. ``trained`` are the
    weights, by path, that were rounded already.
    """
    modules = dict(gm.named_modules())
    qparams: dict[fx.Node, QParams] = {}
    tops: dict[fx.Node, Top] = {}
    count = 0
    by_output = {u.output: u for u in assignment.int8_units}
    weights: dict[str, IntegerWeight] = {}
    joined = joined_qparams(joined_observers(gm, assignment))
    for node in list(gm.graph.nodes):
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        observer = observer_of(module)
        if observer is not None:
            known = joined[observer]
            pair = _insert_pair(gm, node.args[0], known, node)
            node.replace_all_uses_with(pair)
            gm.graph.erase_node(node)
            qparams[pair], top = known, _top_integers(observer, known)
            if top is not None:
                tops[pair] = top
            count += 1
        elif isinstance(module, DeQuantStub):
            node.replace_all_uses_with(node.args[0])
            gm.graph.erase_node(node)
        elif node in by_output:
            unit = by_output[node]
            if unit.rule.weighted:
                bound = _top_for(modules[str(unit.root.target)], tops.get(unit.inputs[0]))
                count += _freeze_weight(gm, unit, assignment, backend, bound, weights, trained or {})
            if unit.rule.output is Output.SHARED:
                count += _share(gm, unit, qparams, tops)
    finish(gm)
    return count


def frozen_layers(gm: fx.GraphModule, assignment: Assignment) -> list[Unit]:
    """The weighted int8 units of a frozen graph whose outputs are computed, in the order in which they run."""
    order = {n: i for i, n in enumerate(gm.graph.nodes)}
    units = [u for u in assignment.int8_units if u.rule.weighted and u.rule.output is not Output.WEIGHT_ONLY]
    return sorted((u for u in units if u.root in order), key=lambda u: order[u.root])


def integer_weight(unit: Unit) -> fx.Node:
    """The ``get_attr`` node of the integers that a frozen layer's weight is dequantized from."""
    weight: fx.Node = unit.root.args[1]  # type: ignore[assignment]
    return weight.args[0]  # type: ignore[return-value]


def channel_axis(gm: fx.GraphModule, unit: Unit) -> int:
    """The axis of the output channels in the output of a frozen layer, counted from the end."""
    return 1 - attribute(gm, integer_weight(unit)).dim()


def joined_qparams(groups: Sequence[Sequence[Observer]]) -> dict[Observer, QParams]:
    """The qparams of every observer in ``groups``, one for each group."""
    found: dict[Observer, QParams] = {}
    for group in groups:
        members = [o for o in group if not isinstance(o, FixedObserver)]
        shared = joint_qparams(members) if len(members) > 1 else None
        found |= {o: shared if shared and o in members else o.qparams() for o in group}
    return found


def joined_observers(gm: fx.GraphModule, assignment: Assignment) -> list[list[Observer]]:
    """Sets of observers whose values a ``cat`` joins; all others alone. Requantizing them would round twice.

    A DenseNet concatenates the same features again and again, so the sets are joined over all its cats.
    """
    modules = dict(gm.named_modules())
    observers: dict[fx.Node, Observer] = {}
    units = {u.output: u for u in assignment.int8_units}
    groups: nx.Graph[Observer] = nx.Graph()
    for node in gm.graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        observer = observer_of(module)
        if observer is not None:
            observers[node] = observer
            groups.add_node(observer)
            source = units.get(node.args[0])
            if source is not None and source.rule.joins:
                groups.add_edges_from((observer, observers[n]) for n in source.inputs if n in observers)
        elif node in units and units[node].rule.output is Output.SHARED:
            source_node = units[node].inputs[0]
            if source_node in observers:
                observers[node] = observers[source_node]
    order = {o: i for i, o in enumerate(groups)}
    return [sorted(group, key=order.__getitem__) for group in nx.connected_components(groups)]


def _insert_pair(gm: fx.GraphModule, value: fx.Node, known: QParams, after: fx.Node) -> fx.Node:
    literals = (known.scale, known.zero_point)
    with gm.graph.inserting_after(after):
        quantized = gm.graph.call_function(quantize, (value, *literals, known.qmin, known.qmax))
    with gm.graph.inserting_after(quantized):
        pair: fx.Node = gm.graph.call_function(dequantize, (quantized, *literals))
    quantized.meta, pair.meta = dict(value.meta), dict(value.meta)
    return pair


def _share(gm: fx.GraphModule, unit: Unit, qparams: dict[fx.Node, QParams], tops: dict[fx.Node, Top]) -> int:
    """The output of a pass-through op has the parameters of its input."""
    value = unit.output
    known = qparams[unit.inputs[0]]
    if unit.rule.multiple:
        qparams[value] = known
        return 0
    readers = list(value.users)
    pair = _insert_pair(gm, value, known, value)
    for reader in readers:
        reader.replace_input_with(value, pair)
    qparams[pair] = known
    if unit.rule.keeps_channels and unit.inputs[0] in tops:
        tops[pair] = tops[unit.inputs[0]]
    return 1


@dataclass(frozen=True)
class Top:
    """The largest integers that calibration saw per channel, in a value of ``axes`` axes."""

    integers: Tensor
    axes: int


def _top_integers(observer: Observer, known: QParams) -> Top | None:
    if observer.channel_high is None:
        return None
    # Padding adds the zero point to what was seen.
    integers = ((observer.channel_high / known.scale).round() + known.zero_point).clamp_min(known.zero_point)
    return Top(integers, observer.dims)


def _top_for(layer: nn.Module, top: Top | None) -> Tensor | None:
    """What bounds the inputs of ``layer``: with more axes than the weight, other channels than its own were seen."""
    weight = layer.weight
    return top.integers if top and isinstance(weight, Tensor) and top.axes == weight.dim() else None


def _freeze_weight(
    gm: fx.GraphModule,
    unit: Unit,
    assignment: Assignment,
    backend: Backend,
    top: Tensor | None,
    done: dict[str, IntegerWeight],
    trained: Mapping[str, IntegerWeight],
) -> int:
    """Replace the call of a weighted module by its function over an integer weight."""
    node, path = unit.root, str(unit.root.target)
    layer = gm.get_submodule(path)
    if path not in done:
        # A layer that is called again meets other inputs than those of this call.
        once = sum(n.op == "call_module" and n.target == path for n in gm.graph.nodes) == 1
        top = top if once else None
        rounded = trained.get(path) or quantize_weight(layer, unit.rule, assignment.config_of(unit), backend, top)
        done[path] = rounded
        _hold(gm, path, rounded, layer, unit.rule)
    with gm.graph.inserting_before(node):
        parts = [gm.graph.get_attr(f"{path}_int8_{name}") for name in ("weight", "scale", "zero_point")]
        weight = gm.graph.call_function(dequantize_channels, (*parts, done[path].axis))
        looks_up = unit.rule.output is Output.WEIGHT_ONLY
        bias = None if looks_up else gm.graph.get_attr(f"{path}_int8_bias")
    call_args = function_arguments(layer, unit.rule)
    args = (node.args[0], weight)
    kwargs: dict[str, Any] = {"bias": bias, **call_args} if bias else call_args
    assert unit.rule.functional is not None
    node.op, node.target, node.args, node.kwargs = "call_function", unit.rule.functional, args, kwargs
    return 1


def _hold(gm: fx.GraphModule, path: str, weight: IntegerWeight, layer: nn.Module, rule: OpRule) -> None:
    """Register the parts of a quantized weight as buffers beside the module they come from; a bias always."""
    owner_path, _, leaf = path.rpartition(".")
    owner = gm.get_submodule(owner_path)
    parts = {"weight": weight.integers, "scale": weight.scale, "zero_point": weight.zero_point}
    if rule.output is not Output.WEIGHT_ONLY:
        bias = getattr(layer, "bias", None)
        given = bias if isinstance(bias, Tensor) else torch.zeros(output_channels(layer, rule))
        parts["bias"] = given.detach().float().clone()
    for name, tensor in parts.items():
        owner.register_buffer(f"{leaf}_int8_{name}", tensor)
