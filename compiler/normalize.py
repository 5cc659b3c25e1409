"""One spelling per op: module, function, method and operator forms become what the op table calls canonical."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..backends.base import Call, OpRule, OpTable, Output
from .errors import CaptureError, where
from .stubs import STUBS

_SYNONYMS = {"axis": "dim", "keepdims": "keepdim", "axis0": "dim0", "axis1": "dim1"}
_OPERATORS = {operator.iadd: "add", operator.imul: "mul", operator.isub: "sub", operator.itruediv: "div"}


def normalize(gm: fx.GraphModule, table: OpTable) -> int:
    """Rewrite every op of ``table`` to its canonical form; returns the number of nodes rewritten.

    Ops with parameters stay ``call_module``; a functional conv or linear over parameters of the model becomes
    one. An op done in place becomes its pure form, and what reads its input later reads its output.
    """
    modules = dict(gm.named_modules())
    sizes: set[fx.Node] = set()
    count = 0
    for node in list(gm.graph.nodes):
        if node.op not in ("call_module", "call_function", "call_method"):
            continue
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if module is not None and type(module).__module__.startswith("torch.ao.") and _is_stub(module):
            node.op, node.target = "call_function", STUBS[type(module).__name__]
            count += 1
            continue
        rule = table.of(node, modules)
        if node.op != "call_module" and _gives_size(node, rule, sizes):
            sizes.add(node)
            continue
        if module is not None and not node.args and node.kwargs:
            (_, first), *rest = node.kwargs.items()
            node.args, node.kwargs = (first,), dict(rest)
        does_nothing = rule is not None and rule.noop is not None and rule.noop(Call(node, module, {}))
        if _in_place(node, module) and not does_nothing:
            _redirect_later_uses(node, table, modules)
        if rule is None:
            continue
        count += _rewrite(gm, node, module, rule)
    gm.graph.lint()
    gm.recompile()
    return count


def _is_stub(module: nn.Module) -> bool:
    return type(module).__name__ in STUBS


def _gives_size(node: fx.Node, rule: OpRule | None, sizes: set[fx.Node]) -> bool:
    if rule is not None and rule.output is Output.META:
        return True
    return bool(node.all_input_nodes) and all(n in sizes for n in node.all_input_nodes)


def _in_place(node: fx.Node, module: nn.Module | None) -> bool:
    if module is not None:
        return bool(getattr(module, "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    name = getattr(node.target, "__name__", "")
    return node.target in _OPERATORS or bool(node.kwargs.get("inplace")) or name.endswith("_")


def _redirect_later_uses(node: fx.Node, table: OpTable, modules: dict[str, nn.Module]) -> None:
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return
    later, reader = set(), node.next
    while reader.op != "root":
        later.add(reader)
        reader = reader.next
    for alias in _aliases(source, table, modules) - {node}:
        if any(user in later for user in alias.users):
            raise CaptureError(
                f"The in-place op {where(node)} changes memory that '{alias.name}' shares, which is read later. "
                "Write it out of place (x = x.relu() instead of x.relu_())."
            )
    for user in list(source.users):
        if user in later:
            user.replace_input_with(source, node)


def _aliases(source: fx.Node, table: OpTable, modules: dict[str, nn.Module]) -> set[fx.Node]:
    """Other values that may share the memory of ``source``: what it is a view of, and views of that."""

    def is_view(node: fx.Node) -> bool:
        rule = table.of(node, modules)
        return rule is not None and rule.views

    base = source
    while is_view(base):
        base = base.all_input_nodes[0]
    found, front = {base}, [base]
    while front:
        views = [u for u in front.pop().users if is_view(u)]
        found.update(views)
        front += views
    return found - {source}


def _rewrite(gm: fx.GraphModule, node: fx.Node, module: nn.Module | None, rule: OpRule) -> bool:
    if isinstance(rule.canonical, type):
        return module is None and _as_module(gm, node, rule)
    if isinstance(rule.canonical, str):
        return False
    tensors, params = _bind(node, module, rule)
    before = (node.op, node.target, node.args, node.kwargs)
    after = ("call_function", rule.canonical, tensors, params)
    if before == after:
        return False
    node.op, node.target, node.args, node.kwargs = after
    return True


def _bind(node: fx.Node, module: nn.Module | None, rule: OpRule) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call's tensor inputs, and its other parameters by name (those of a module from its attributes)."""
    names = rule.param_names
    count = max(rule.inputs, 1)
    given = dict(node.kwargs)
    tensors = list(node.args[:count])
    for name in ("input", "x", "tensors", "other", "tensor"):
        if len(tensors) < count and name in given:
            tensors.append(given.pop(name))
    rest = list(node.args[count:])
    if len(names) == 1 and rest and names[0] in ("shape", "dims", "repeats") and not _is_whole_shape(rest[0]):
        # x.view(2, 3) and x.view((2, 3)) mean the same; x.view(y.shape) is left as it is.
        rest = [tuple(rest[0]) if isinstance(rest[0], list | tuple) else tuple(rest)]
    params = dict(zip(names, rest, strict=False))
    if module is not None:
        own = {n: getattr(module, n) for n in names if hasattr(module, n)}
        params |= rule.from_module(module) if rule.from_module else own
    params |= {_SYNONYMS.get(k, k): v for k, v in given.items() if k != "inplace"}
    return tuple(tensors), {k: v for k, v in params.items() if v is not None}


def _is_whole_shape(value: object) -> bool:
    if not isinstance(value, fx.Node):
        return False
    return value.target is getattr or (value.target == "size" and len(value.args) == 1 and not value.kwargs)


def padding_of(conv: Any) -> tuple[int, ...]:
    """The padding of a convolution in integers, one for each axis of its window."""
    if conv.padding == "same":
        # Refused before where the sides differ.
        return tuple(d * (k - 1) // 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    return (0,) * len(conv.kernel_size) if conv.padding == "valid" else tuple(conv.padding)


_FUNCTIONAL: dict[Any, tuple[str, ...]] = {
    F.linear: ("input", "weight", "bias"),
    **dict.fromkeys(
        (F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d),
        ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    ),
}


def _as_module(gm: fx.GraphModule, node: fx.Node, rule: OpRule) -> bool:
    """``F.conv2d(x, self.weight, ...)`` becomes a call of an ``nn.Conv2d`` that holds the same parameter."""
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
    # Random weights would take numbers from the user's generator.
    module = nn.utils.skip_init(rule.canonical, *sizes, bias=bias is not None, **options)
    # The same parameters: what is tied to them stays tied.
    module.weight = _as_parameter(weight)
    if bias is not None:
        module.bias = _as_parameter(bias)
    name = f"{node.name}_module"
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
