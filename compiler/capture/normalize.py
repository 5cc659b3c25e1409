"""One spelling per op: module, function, method and operator forms become what the op table calls canonical."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from ...backends.base.op import Call, OpRow, Output
from ...backends.ops.stubs import STUBS
from ...backends.ops.table import OPS
from ..execution.graphs import called_module
from .functional_layers import make_layer
from .in_place import PURE, is_in_place, redirect_later_uses
from .sharing import SIZES, Sharing, part_of
from .size_reads import delay_size_reads

_ITSELF = ("data", "real")  # attributes of a real tensor that are the tensor, in the same memory
_NUMBERS = ("item",)  # methods that give what Python computes with
_WITH_INDICES = tuple(getattr(F, f"max_pool{d}d_with_indices") for d in (1, 2, 3))  # whatever return_indices is
_SYNONYMS = {"axis": "dim", "keepdims": "keepdim", "axis0": "dim0", "axis1": "dim1"}


def normalize(gm: fx.GraphModule, at_owners: bool = False) -> int:
    """Rewrite every op to its canonical form. Returns the number of nodes rewritten.

    Ops with parameters stay ``call_module``, and a functional convolution or linear op over parameters of the model
    becomes one. An in-place op becomes its pure form, and what reads its input later reads its output.

    Args:
        at_owners: see :func:`~.functional_layers.make_layer`.

    Raises:
        CaptureError: an in-place op changes memory that is read later under another name.
    """
    modules = dict(gm.named_modules())
    sharing = Sharing(gm, modules)
    count = 0
    for node in list(gm.graph.nodes):
        if node.op not in ("call_module", "call_function", "call_method"):
            continue
        module = called_module(node, modules)
        if module is not None and type(module).__module__.startswith("torch.ao.") and _is_stub(module):
            node.op, node.target = "call_function", STUBS[type(module).__name__]
            count += 1
            continue
        if node.target is getattr and node.args[1] in _ITSELF:
            node.replace_all_uses_with(node.args[0])
            gm.graph.erase_node(node)
            count += 1
            continue
        if node.target is getattr and node.args[1] not in SIZES:
            node.target = part_of
            count += 1
        if node.target in PURE and all(n in sharing.numbers for n in node.all_input_nodes):
            node.target = PURE[node.target]  # Python's numbers do not change
        row = OPS.of(node, modules)
        if node.target in _WITH_INDICES:
            node.kwargs = {**node.kwargs, "return_indices": True}
        if node.target == "view" and any(isinstance(a, torch.dtype) for a in (*node.args, *node.kwargs.values())):
            # The same memory as other numbers: not the op that changes shapes.
            node.op, node.target, row = "call_function", torch.Tensor.view, None
        if node.op != "call_module" and _gives_number(node, row, sharing.numbers):
            sharing.numbers.add(node)
            continue
        if module is not None and not node.args and node.kwargs:
            (_, first), *rest = node.kwargs.items()
            node.args, node.kwargs = (first,), dict(rest)
        does_nothing = row is not None and row.noop is not None and row.noop(Call(node, module, {}))
        if is_in_place(node, module) and not does_nothing:
            redirect_later_uses(node, modules, sharing)
        layer = make_layer(gm, node, at_owners) if module is None else None
        if layer is not None:
            modules[str(node.target)] = layer
            count += 1
            continue
        if row is None:
            node.target = PURE.get(node.target, node.target)
            continue
        count += _rewrite(node, module, row)
    delay_size_reads(gm, modules, sharing.numbers)
    gm.graph.lint()
    gm.recompile()
    return count


def _is_stub(module: nn.Module) -> bool:
    return type(module).__name__ in STUBS


def _gives_number(node: fx.Node, row: OpRow | None, numbers: set[fx.Node]) -> bool:
    if node.target in _NUMBERS or (row is not None and row.output is Output.META):
        return True
    return bool(node.all_input_nodes) and all(n in numbers for n in node.all_input_nodes)


def _rewrite(node: fx.Node, module: nn.Module | None, row: OpRow) -> bool:
    if isinstance(row.canonical, type | str):
        return False
    tensors, params = _bind(node, module, row)
    before = (node.op, node.target, node.args, node.kwargs)
    after = ("call_function", row.canonical, tensors, params)
    if before == after:
        return False
    node.op, node.target, node.args, node.kwargs = after
    return True


def _bind(node: fx.Node, module: nn.Module | None, row: OpRow) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The tensor inputs of the call, and its other parameters by name (of a module: from its attributes)."""
    names = row.param_names
    count = max(row.inputs, 1)
    given = dict(node.kwargs)
    tensors = list(node.args[:count])
    for name in ("input", "x", "tensors", "other", "tensor"):
        if len(tensors) < count and name in given:
            tensors.append(given.pop(name))
    rest = list(node.args[count:])
    if len(names) == 1 and rest and names[0] in ("shape", "dims", "repeats"):
        # x.view(2, 3) and x.view((2, 3)) mean the same.
        shape: Any = rest[0] if _is_whole_shape(rest[0]) else rest
        rest = [shape if isinstance(shape, fx.Node) else tuple(shape)]
    params = dict(zip(names, rest, strict=False))
    if module is not None:
        own = {n: getattr(module, n) for n in names if hasattr(module, n)}
        params |= row.from_module(module) if row.from_module else own
    params |= {_SYNONYMS.get(k, k): v for k, v in given.items() if k not in ("inplace", "out")}
    return tuple(tensors), {k: v for k, v in params.items() if v is not None}


def _is_whole_shape(value: object) -> bool:
    """Whether ``value`` is a sequence of sizes, not one size: ``x.shape``, ``x.size()[:-1] + (4, 8)``."""
    if not isinstance(value, fx.Node):
        return isinstance(value, list | tuple)
    if value.target == "size":
        return len(value.args) == 1 and not value.kwargs
    if value.target is operator.getitem:
        return isinstance(value.args[1], slice) and _is_whole_shape(value.args[0])
    if value.target in (operator.add, torch.add):
        return any(map(_is_whole_shape, value.args))
    return value.target is getattr
