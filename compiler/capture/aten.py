"""The spelling of torch.export: ``torch.ops.aten`` calls as the functions that users write."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from ...backends.ops.table import OPS
from .functional_layers import FORMS

Spelling = tuple[str, Any, tuple[Any, ...], dict[str, Any]]  # op, target, args, kwargs of a node

_BATCH_NORM = "_native_batch_norm_legit_no_training"  # returns a tuple, of which the first counts
_POOLS = {f"max_pool{d}d_with_indices": getattr(F, f"max_pool{d}d") for d in (2, 3)}
_LAST = 2**63 - 1  # the end of a slice that has none
_NOTHING = ("clone", "contiguous", "detach", "alias", "lift_fresh_copy", "lift_fresh", "detach_", "dropout")
CHECKS = (
    "_assert_tensor_metadata",
    "_assert_scalar",
    "_assert_async",
    "sym_constrain_range",
    "sym_constrain_range_for_size",
)


def name_of(target: Any) -> str:
    """The name of an aten op without its overload; "" for other targets."""
    return str(target.overloadpacket.__name__) if isinstance(target, torch._ops.OpOverload) else ""


def does_nothing(node: fx.Node) -> bool:
    """Whether the value of ``node`` is its input. Exported graphs change nothing in place, so that copies are."""
    name = name_of(node.target)
    if node.target is operator.getitem:
        source: Any = node.args[0]
        return name_of(source.target) == _BATCH_NORM or (name_of(source.target) in _POOLS and _only_values(source))
    if name == "slice":
        return _slice(node) == slice(None, None, None)
    if name == "_to_copy":
        return not node.kwargs
    return name in _NOTHING and not (name == "dropout" and node.args[2])


def spelled(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Spelling:
    """How ``node`` of an exported graph is spelled; ``args`` and ``kwargs`` are its arguments in the new graph."""
    name = name_of(node.target)
    special = _SPECIAL.get(name)
    if special is not None:
        return special(node, args, kwargs)
    function = _function(name)
    if function is not None:
        return "call_function", function, args, kwargs
    if any(isinstance(a, list | tuple) and any(isinstance(v, fx.Node) for v in a) for a in node.args):
        # TorchScript takes sizes in a list for constants where an OpOverload is called.
        options = {key: value for key, value in kwargs.items() if key not in ("layout", "pin_memory")}
        if name.startswith("new_"):
            return "call_method", name, args, options
        if callable(getattr(torch, name, None)):
            return "call_function", getattr(torch, name), args, options
    return "call_function", node.target, args, kwargs


def _function(name: str) -> Any:
    """The function of that name that fxquant knows something of, if any."""
    for library in (torch, F):
        function = getattr(library, name, None)
        if function is not None and (OPS.find(function) is not None or function in FORMS):
            return function
    return None


def _slice(node: fx.Node) -> slice:
    _, _, start, end, step = (*node.args, *(None,) * 5)[:5]
    whole = (start in (None, 0), end is None or (isinstance(end, int) and end >= _LAST), step in (None, 1))
    return slice(*(None if default else value for default, value in zip(whole, (start, end, step), strict=True)))


def _as_getitem(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Spelling:
    dim = node.args[1] if len(node.args) > 1 else 0
    axes = node.args[0].meta["val"].dim()  # type: ignore[union-attr]
    part = _slice(node)
    new = dict(zip(node.args, args, strict=True))

    def moved(bound: Any) -> Any:
        return new[bound] if isinstance(bound, fx.Node) else bound

    index = (*(slice(None),) * (int(dim) % axes), slice(moved(part.start), moved(part.stop), moved(part.step)))  # type: ignore[arg-type]
    return "call_function", operator.getitem, (args[0], index), {}


def _method(name: str) -> Callable[[fx.Node, tuple[Any, ...], dict[str, Any]], Spelling]:
    return lambda node, args, kwargs: ("call_method", name, args, kwargs)


def _sizes(name: str) -> Callable[[fx.Node, tuple[Any, ...], dict[str, Any]], Spelling]:
    return lambda node, args, kwargs: ("call_method", name, (args[0], *args[1]), {})


def _as_interpolate(mode: str) -> Callable[[fx.Node, tuple[Any, ...], dict[str, Any]], Spelling]:
    def spell(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Spelling:
        if node.target._overloadname != "vec":  # type: ignore[union-attr]
            return "call_function", node.target, args, kwargs
        options: dict[str, Any] = {"mode": mode}
        if mode.startswith("nearest"):
            _, size, factor = (*args, None, None)[:3]
        else:
            _, size, options["align_corners"], factor = (*args, None, None)[:4]
        options |= {"size": size} if size is not None else {"scale_factor": factor}
        return "call_function", F.interpolate, (args[0],), options

    return spell


def _as_to(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Spelling:
    return "call_method", "to", args, {k: v for k, v in kwargs.items() if k == "dtype"}


def _as_batch_norm(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Spelling:
    return "call_function", torch.batch_norm, (*args[:5], False, *args[5:], False), {}


def _only_values(pool: fx.Node) -> bool:
    """Whether nothing reads the indices that a max pool returns."""
    return all(user.target is operator.getitem and user.args[1] == 0 for user in pool.users)


def _as_max_pool(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Spelling:
    name = name_of(node.target)
    return "call_function", _POOLS[name] if _only_values(node) else _function(name), args, kwargs


_SPECIAL: dict[str, Callable[[fx.Node, tuple[Any, ...], dict[str, Any]], Spelling]] = {
    "slice": _as_getitem,
    _BATCH_NORM: _as_batch_norm,
    **dict.fromkeys(_POOLS, _as_max_pool),
    "sym_size": _method("size"),
    "view": lambda node, args, kwargs: ("call_function", torch.reshape, args, {}),
    "_unsafe_view": lambda node, args, kwargs: ("call_function", torch.reshape, args, {}),
    "expand": _sizes("expand"),
    "repeat": _sizes("repeat"),
    "_to_copy": _as_to,
    "split_with_sizes": lambda node, args, kwargs: ("call_function", torch.split, args, kwargs),
    "constant_pad_nd": lambda node, args, kwargs: (
        "call_function",
        F.pad,
        (args[0], args[1], "constant", *args[2:]),
        {},
    ),
    "upsample_nearest2d": _as_interpolate("nearest"),
    "upsample_bilinear2d": _as_interpolate("bilinear"),
    "upsample_bicubic2d": _as_interpolate("bicubic"),
}
