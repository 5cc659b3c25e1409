"""Copies of models, and their training modes."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from types import CellType, FunctionType
from typing import Any

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..core.errors import ModelError
from ..core.tensors import tensors_of


def copy_model(model: nn.Module, parameters: Mapping[int, nn.Parameter] | None = None) -> nn.Module:
    """A deep copy of ``model``.

    Args:
        parameters: parameters of the copy, by the id() of those of ``model``; others are copied.

    Raises:
        ModelError: the model cannot be copied.
    """
    memo: dict[int, Any] = dict(parameters or {})
    for module in model.modules():
        # Results of hooks that compute weights. A tensor with a gradient function cannot be copied otherwise.
        held = tensors_of(list(vars(module).values()))
        results = [v for v in held if not v.is_leaf and not isinstance(v, nn.Parameter)]
        memo |= {id(value): value.detach().clone() for value in results}
    try:
        copied = copy.deepcopy(model, memo)
        for module in copied.modules():
            _rebind_functions(module, memo)
        return copied
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be deep-copied ({error}). fxquant works on a copy: make "
            "copy.deepcopy(model) work, for example without locks and open files among its attributes."
        ) from error


def _rebind_functions(module: nn.Module, memo: dict[int, Any]) -> None:
    """Let functions that ``module`` holds, hooks among them, close over the copies in ``memo``, not over the model.

    A deep copy has the same functions as the model.
    """
    held: Any
    for held in (vars(module), module._forward_hooks, module._forward_pre_hooks):
        for key, value in list(held.items()):
            if not isinstance(value, FunctionType) or not value.__closure__:
                continue
            cells = tuple(_rebound(cell, memo) for cell in value.__closure__)
            if any(new is not old for new, old in zip(cells, value.__closure__, strict=True)):
                copied = FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, cells)
                copied.__kwdefaults__ = value.__kwdefaults__
                held[key] = copied


def _rebound(cell: Any, memo: dict[int, Any]) -> Any:
    try:
        value = cell.cell_contents
    except ValueError:  # empty
        return cell
    return CellType(memo[id(value)]) if id(value) in memo and memo[id(value)] is not value else cell


def view_for_inference(model: nn.Module) -> nn.Module:
    """:func:`copy_for_inference`, whose parameters are in the same memory as those of ``model``."""
    return _for_inference(copy_model(model, {id(p): nn.Parameter(p.detach(), False) for p in model.parameters()}))


def copy_for_inference(model: nn.Module, share_parameters: bool = False) -> nn.Module:
    """:func:`copy_model` in eval mode, without gradients, and with weights as they are used.

    Parametrizations, and hooks that compute a weight before each call, are replaced by their result.
    """
    return _for_inference(copy_model(model, {id(p): p for p in model.parameters()} if share_parameters else None))


def _for_inference(copied: nn.Module) -> nn.Module:
    copied.eval().requires_grad_(False)
    for module in list(copied.modules()):
        if parametrize.is_parametrized(module):
            _remove_parametrizations(module)
        for key, hook in list(module._forward_pre_hooks.items()):
            if isinstance(hook, WeightNorm | SpectralNorm | BasePruningMethod):
                hook.remove(module)
                del module._forward_pre_hooks[key]
    return copied.requires_grad_(False)


def _remove_parametrizations(module: nn.Module) -> None:
    """As parametrize.remove_parametrizations(), which also changes the class, but the user's model has the same."""
    names: Any = module.parametrizations
    weights = {name: getattr(module, name).detach() for name in names}
    kind = parametrize.type_before_parametrizations(module)
    del module._modules["parametrizations"]
    module.__class__ = kind
    for name, weight in weights.items():
        module.register_parameter(name, nn.Parameter(weight))


@contextlib.contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """At the end, put every module of ``model`` back into the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
