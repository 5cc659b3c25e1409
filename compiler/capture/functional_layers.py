"""A functional call of a layer over parameters or buffers of the model becomes a call of the layer's module."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ...backends.ops.any_batch_norm import AnyBatchNorm
from ..core.overrides import module_path


class _NotConstant(Exception):
    """A weight or an option is computed in forward()."""


@dataclass(frozen=True)
class _Call:
    """A functional call, with its arguments by name, and the paths of the tensors among them that were asked for."""

    gm: fx.GraphModule
    node: fx.Node
    given: dict[str, Any]
    paths: dict[str, str] = field(default_factory=dict)

    def tensor(self, name: str) -> Tensor | None:
        """A parameter or buffer of the model; None if it is not given."""
        value = self.given.get(name)
        if value is None:
            return None
        if not (isinstance(value, fx.Node) and value.op == "get_attr"):
            raise _NotConstant
        owner, _, leaf = str(value.target).rpartition(".")
        found = getattr(self.gm.get_submodule(owner), leaf, None)
        if not isinstance(found, Tensor):
            raise _NotConstant
        self.paths[name] = str(value.target)
        return found

    def weight(self, name: str = "weight") -> Tensor:
        found = self.tensor(name)
        if found is None:
            raise _NotConstant
        return found

    def options(self, *names: str) -> dict[str, Any]:
        """Those of ``names`` that are given."""
        found = {name: self.given[name] for name in names if name in self.given}
        fx.node.map_arg(found, _refuse_node)
        return found


def _refuse_node(node: fx.Node) -> Any:
    raise _NotConstant


def _filled(module: nn.Module, **tensors: Tensor | None) -> nn.Module:
    """``module`` with ``tensors``. They are the model's own, so that tied weights stay tied."""
    for name, tensor in tensors.items():
        if tensor is not None:
            parameter = name in module._parameters and not isinstance(tensor, nn.Parameter)
            setattr(module, name, nn.Parameter(tensor, requires_grad=False) if parameter else tensor)
    return module


def _linear(call: _Call) -> nn.Module:
    weight, bias = call.weight(), call.tensor("bias")
    if weight.dim() != 2:
        raise _NotConstant
    # Without initialization, which would draw from the user's generator. So below.
    module = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None)
    return _filled(module, weight=weight, bias=bias)


def _product(call: _Call) -> nn.Module:
    """``bias + input @ weight``. A transposed copy of the weight would not be trained."""
    weight, bias = call.weight(), call.tensor("bias")
    scaled = any(v != 1 for v in call.options("beta", "alpha").values())
    if weight.dim() != 2 or weight.requires_grad or scaled or (bias is not None and bias.shape != weight.shape[1:]):
        raise _NotConstant
    module = nn.utils.skip_init(nn.Linear, *weight.shape, bias=bias is not None)
    return _filled(module, weight=weight.t().contiguous(), bias=bias)


def _convolution(kind: type[nn.Module], transposed: bool) -> Callable[[_Call], nn.Module]:
    def make(call: _Call) -> nn.Module:
        weight, bias = call.weight(), call.tensor("bias")
        options = call.options("stride", "padding", "output_padding", "dilation", "groups")
        sizes = [weight.shape[1] * int(options.get("groups", 1)), weight.shape[0]]
        if transposed:
            sizes = [weight.shape[0], weight.shape[1] * int(options.get("groups", 1))]
        options["kernel_size"] = tuple(weight.shape[2:])
        return _filled(nn.utils.skip_init(kind, *sizes, bias=bias is not None, **options), weight=weight, bias=bias)

    return make


def _batch_norm(call: _Call) -> nn.Module:
    weight, bias = call.tensor("weight"), call.tensor("bias")
    mean, var = call.weight("running_mean"), call.weight("running_var")
    if call.options("training").get("training", False) or (weight is None) != (bias is None):
        raise _NotConstant
    kind = {3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(_axes(call), AnyBatchNorm)
    module = kind(mean.numel(), affine=weight is not None, **call.options("momentum", "eps"))
    return _filled(module, weight=weight, bias=bias, running_mean=mean, running_var=var)


def _layer_norm(call: _Call) -> nn.Module:
    weight, bias = call.tensor("weight"), call.tensor("bias")
    shape = call.options("normalized_shape")["normalized_shape"] if weight is None else tuple(weight.shape)
    if weight is None and bias is not None:
        raise _NotConstant
    module = nn.LayerNorm(shape, elementwise_affine=weight is not None, bias=bias is not None, **call.options("eps"))
    return _filled(module, weight=weight, bias=bias)


def _group_norm(call: _Call) -> nn.Module:
    weight, bias = call.weight(), call.weight("bias")
    module = nn.GroupNorm(call.options("num_groups")["num_groups"], weight.numel(), **call.options("eps"))
    return _filled(module, weight=weight, bias=bias)


def _embedding(call: _Call) -> nn.Module:
    weight = call.weight()
    if weight.dim() != 2 or call.options("max_norm").get("max_norm") is not None:
        raise _NotConstant
    return _filled(nn.utils.skip_init(nn.Embedding, *weight.shape), weight=weight)


def _prelu(call: _Call) -> nn.Module:
    weight = call.weight()
    return _filled(nn.PReLU(weight.numel()), weight=weight)


_CONV = "input weight bias stride padding dilation groups"
_TRANSPOSED = "input weight bias stride padding output_padding groups dilation"
_Form = tuple[Callable[[_Call], nn.Module], str]  # makes the module; names of the arguments by position
FORMS: dict[Any, _Form] = {
    F.linear: (_linear, "input weight bias"),
    torch.addmm: (_product, "bias input weight beta alpha"),
    torch.mm: (_product, "input weight"),
    torch.matmul: (_product, "input weight"),
    operator.matmul: (_product, "input weight"),
    "matmul": (_product, "input weight"),
    F.batch_norm: (_batch_norm, "input running_mean running_var weight bias training momentum eps"),
    torch.batch_norm: (_batch_norm, "input weight bias running_mean running_var training momentum eps cudnn_enabled"),
    F.layer_norm: (_layer_norm, "input normalized_shape weight bias eps"),
    torch.layer_norm: (_layer_norm, "input normalized_shape weight bias eps cudnn_enabled"),
    F.group_norm: (_group_norm, "input num_groups weight bias eps"),
    torch.group_norm: (_group_norm, "input num_groups weight bias eps cudnn_enabled"),
    F.embedding: (_embedding, "input weight padding_idx max_norm norm_type scale_grad_by_freq sparse"),
    torch.embedding: (_embedding, "weight input padding_idx scale_grad_by_freq sparse"),
    F.prelu: (_prelu, "input weight"),
    torch.prelu: (_prelu, "input weight"),
}
for _dims in (1, 2, 3):
    _plain = _convolution(getattr(nn, f"Conv{_dims}d"), False), _CONV
    _reverse = _convolution(getattr(nn, f"ConvTranspose{_dims}d"), True), _TRANSPOSED
    for _module in (F, torch):
        FORMS[getattr(_module, f"conv{_dims}d")] = _plain
        FORMS[getattr(_module, f"conv_transpose{_dims}d")] = _reverse
_SYNONYMS = {"mat1": "input", "mat2": "weight", "self": "input", "other": "weight"}


def make_layer(gm: fx.GraphModule, node: fx.Node, at_owners: bool) -> nn.Module | None:
    """``F.conv2d(x, self.weight, ...)`` becomes a call of an ``nn.Conv2d`` that holds the same parameter.

    Args:
        at_owners: put it at the path of the module whose parameters it has, if that has no other use in the graph, else
            below the module in whose forward() it is called. Not if somebody else looks for modules there.

    Returns the module; None if ``node`` is no such call, or its weight is computed in forward().
    """
    try:
        make, names = FORMS[node.target]
    except (KeyError, TypeError):  # TypeError: not hashable
        return None
    named = dict(zip(names.split(), node.args, strict=False)) | dict(node.kwargs)
    if node.target is torch.addmm and "input" in node.kwargs:
        named["bias"] = named.pop("input")
    call = _Call(gm, node, {_SYNONYMS.get(name, name): value for name, value in named.items()})
    data = call.given.get("input")
    if not isinstance(data, fx.Node) or data.op == "get_attr":
        return None
    try:
        module = make(call)
    except _NotConstant:
        return None
    name = _placed(call, module.eval(), at_owners)
    node._rename(name.replace(".", "_"))
    read = [n for n in node.all_input_nodes if n is not data]
    node.op, node.target, node.args, node.kwargs = "call_module", name, (data,), {}
    for parameter in read:
        if not parameter.users:  # else the layer would count as shared
            gm.graph.erase_node(parameter)
    return gm.get_submodule(name)


def _placed(call: _Call, module: nn.Module, at_owners: bool) -> str:
    """Where ``module`` is in the graph now."""
    gm, owners = call.gm, {path.rpartition(".")[0] for path in call.paths.values()}
    owner = owners.pop() if len(owners) == 1 else ""
    inside = module_path(call.node)
    if at_owners and owner and owner == inside and all(path == f"{owner}.{name}" for name, path in call.paths.items()):
        there = gm.get_submodule(owner)
        held = {**there._parameters, **there._buffers}
        if type(there) is nn.Module and not there._modules and held.keys() == call.paths.keys():
            gm.set_submodule(owner, module)
            return owner
        same = type(there) is type(module) and there.extra_repr() == module.extra_repr()
        if same and all(held[name] is getattr(module, name) for name in call.paths):
            return owner
    name = f"{inside}.{call.node.name}_module".lstrip(".") if at_owners else f"{call.node.name}_module"
    known = {path for path, _ in gm.named_modules()}
    while name in known:
        name += "_"
    gm.add_submodule(name, module)
    return name


def _axes(call: _Call) -> int:
    """Axes of the input, as the layer before it tells them; 0 if there is none."""
    modules, node = dict(call.gm.named_modules()), call.given["input"]
    while node.all_input_nodes:
        if node.op == "call_module":
            weight = getattr(modules[str(node.target)], "weight", None)
            if isinstance(weight, Tensor) and weight.dim() > 2:
                return weight.dim()
            if isinstance(modules[str(node.target)], nn.Linear):
                return 3
        node = node.all_input_nodes[0]
    return 0
