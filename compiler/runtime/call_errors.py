"""Which layer a call failed in, and with which input: the errors of kernels say neither."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

from torch import Tensor, nn

from ...backends.base.dynamic_layer import DynamicLayer
from ..core.errors import CallError

SIZES = ("in_features", "input_size", "num_embeddings")


_OF_KERNELS = (
    RuntimeError,
    TypeError,
    ValueError,
    IndexError,
    KeyError,
    AttributeError,
    NotImplementedError,
    AssertionError,
)


def is_of_a_kernel(error: Exception) -> bool:
    """Whether torch raises such errors. Others (a timeout) come from signal handlers and hooks of the user."""
    return type(error) in _OF_KERNELS or type(error).__module__.partition(".")[0] == "torch"


def call_error(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception) -> CallError | None:
    """The error for a call that failed with ``error``; None if no layer with packed weights is the cause.

    Runs the call again, to find the layer that it enters and does not leave.
    """
    entered: list[tuple[str, tuple[Any, ...]]] = []
    own = threading.get_ident()  # other threads may run the same layers

    def enter(path: str, layer: nn.Module, given: tuple[Any, ...]) -> None:
        if threading.get_ident() == own:
            entered.append((path, given))

    def leave(*_: Any) -> None:
        if threading.get_ident() == own:
            entered.pop()

    hooks = []
    for path, layer in module.named_modules():
        if isinstance(layer, DynamicLayer):
            hooks += [layer.register_forward_pre_hook(partial(enter, path)), layer.register_forward_hook(leave)]
    if not hooks:
        return None
    try:
        module(*args, **kwargs)
    except Exception:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    if not entered:
        return None
    path, given = entered[-1]
    failed = module.get_submodule(path)
    sizes = [f"{name} {value}" for name, value in vars(failed).items() if name in SIZES]
    wanted = ", ".join(["integers" if hasattr(failed, "num_embeddings") else "fp32 values", *sizes])
    where = f"Layer '{path or '(root)'}' ({failed.extra_repr()})"
    return CallError(f"{where} failed on {_all_described(given)}; it takes {wanted}. {reason_of(error)}")


def reason_of(error: Exception) -> str:
    """The line of an error that says what is wrong: the last one of a traceback of TorchScript, else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1] if "Traceback of TorchScript" in str(error) else lines[0]


def described(value: Any) -> str:
    """The dtype and shape of a tensor; of anything else the type."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return type(value).__name__


def _all_described(given: Any) -> str:
    return ", ".join(map(_all_described, given)) if isinstance(given, list | tuple) else described(given)
