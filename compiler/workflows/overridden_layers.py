"""Overrides of a graph: the configuration of each op, and the layers that become dynamic layers in a static model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx, nn

from ...backends.base.backend import Backend
from ...backends.ops.table import OPS
from ...passes.dynamic.attention import project_attentions
from ...passes.dynamic.plan import LayerPlan, LayerRequest
from ..core.config import QuantConfig
from ..core.errors import ConfigError
from ..core.overrides import WHOLE, Part, ResolvedConfig, node_subject, resolve


def resolve_overrides(gm: fx.GraphModule, config: QuantConfig, part: Part = WHOLE) -> ResolvedConfig:
    """The configuration of each op of ``gm``, which is the graph of ``part`` of the user's model.

    Raises:
        ConfigError: an override matches nothing, or no dynamic layer reads group_size.
    """
    entries = [config, *(o for o in config.overrides.values() if isinstance(o, QuantConfig))]
    if any(e.group_size for e in entries[1:]) or (config.group_size and "dynamic" not in config.overrides.values()):
        raise ConfigError(
            "group_size is for layers whose activations are quantized at run time: use scheme 'dynamic', or give "
            "those layers the override 'dynamic'."
        )
    modules: Mapping[str, nn.Module] = dict(gm.named_modules())
    subjects = {
        node: node_subject(node, row.name if (row := OPS.of(node, modules)) else "", part)
        for node in gm.graph.nodes
        if node.op in ("call_module", "call_function", "call_method")
    }
    return resolve(config, subjects, part)


def plan_overridden_layers(gm: fx.GraphModule, config: ResolvedConfig, backend: Backend) -> LayerPlan:
    """The plan for layers, also in modules that are kept whole, for which an override asks for a dtype by name."""
    plan = LayerPlan()
    for node in gm.graph.nodes:
        dtype, chosen = config.dynamic_dtype(node), config.of(node)
        if node.op != "call_module" or dtype is None or chosen is None:
            continue
        whole = gm.get_submodule(str(node.target))
        if OPS.find(type(whole)) is None:
            around = f"{node.target}."
            _, left = project_attentions(gm, lambda path, around=around: f"{path}.".startswith(around))  # type: ignore[misc]
            plan.reasons |= left
            whole = gm.get_submodule(str(node.target))
        request = LayerRequest(dtype, chosen, overridden=True)
        for path, layer in whole.named_modules(prefix=str(node.target)):
            plan.ask(path, layer, request, backend, node)
    return plan
