"""A functional convolution or linear op over parameters of the model becomes a layer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from ...backends.base.op import OpRow

_FUNCTIONAL: dict[Any, tuple[str, ...]] = {
    F.linear: ("input", "weight", "bias"),
    **dict.fromkeys(
        (F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d),
        ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    ),
}


def make_layer(gm: fx.GraphModule, node: fx.Node, row: OpRow) -> bool:
    """``F.conv2d(x, self.weight, ...)`` becomes a call of an ``nn.Conv2d`` that holds the same parameter.

    Returns whether it did: not if the weight is computed in forward().
    """
    names = _FUNCTIONAL.get(node.target)
    if names is None:
        return False
    call = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    weight, bias = _parameter(gm, call.get("weight")), _parameter(gm, call.get("bias"))
    if weight is None or (call.get("bias") is not None and bias is None):
        return False
    options: dict[str, Any] = {k: call[k] for k in ("stride", "padding", "dilation", "groups") if k in call}
    if any(isinstance(v, fx.Node) for v in options.values()):
        return False
    groups = int(options.get("groups", 1))
    sizes = (weight.shape[1] * groups, weight.shape[0])
    if weight.dim() > 2:
        options["kernel_size"] = tuple(weight.shape[2:])
    # Without initialization, which would draw from the user's generator.
    module = nn.utils.skip_init(row.canonical, *sizes, bias=bias is not None, **options)
    # The same parameters: tied weights stay tied.
    module.weight = _as_parameter(weight)
    if bias is not None:
        module.bias = _as_parameter(bias)
    name = f"{node.name}_module"
    while hasattr(gm, name):
        name += "_"
    gm.add_submodule(name, module.eval())
    node.op, node.target, node.args, node.kwargs = "call_module", name, (call["input"],), {}
    return True


def _as_parameter(tensor: torch.Tensor) -> nn.Parameter:
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)


def _parameter(gm: fx.GraphModule, value: object) -> torch.Tensor | None:
    if not (isinstance(value, fx.Node) and value.op == "get_attr"):
        return None
    owner, _, leaf = str(value.target).rpartition(".")
    tensor = getattr(gm.get_submodule(owner), leaf, None)
    return tensor if isinstance(tensor, torch.Tensor) else None
