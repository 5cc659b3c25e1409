"""TorchScript, one thread at a time, without its deprecation warnings, and without what it keeps for ever."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ....compiler.core.locks import process_lock

Run = Callable[..., Any]

_compiling = process_lock()  # TorchScript's tracer and compiler keep state of the process


def script(what: Any) -> Any:
    """Compile a function, or a module with its constants frozen. Raises whatever TorchScript raises."""

    def make() -> Any:
        compiled = torch.jit.script(what)
        return _frozen(compiled, type(what)) if isinstance(what, nn.Module) else compiled

    return _alone(make)


def trace(module: nn.Module, inputs: Sequence[Any]) -> Run:
    """The computation of ``module`` on ``inputs``, with its constants frozen. Raises whatever TorchScript raises."""
    return _alone(lambda: _frozen(torch.jit.trace(module, tuple(inputs), check_trace=False), type(module)))


def _frozen(module: Any, kind: type) -> Run:
    """The forward() of a TorchScript module as a function that owns its constants.

    TorchScript keeps the types of all modules for ever, and with them the graphs of their methods, which hold the
    constants. So the graph moves into a function of its own, which is freed with its last user.
    """
    frozen = torch.jit.freeze(module)
    graph = frozen.graph.copy()
    # Frozen code reads self only for what cannot be a constant: oneDNN's own tensors.
    own = [frozen] if next(graph.inputs()).uses() else []
    if not own:
        graph.eraseInput(0)
    run = torch._C._create_function_from_graph("forward", graph)
    for left in (frozen.graph, module.graph):
        for _ in list(left.outputs()):
            left.eraseOutput(0)
        for node in reversed(list(left.nodes())):
            node.destroy()
    torch.jit._recursive.concrete_type_store.type_store.pop(kind, None)

    def call(*args: Any) -> Any:
        try:
            return run(*own, *args)
        except RuntimeError as error:
            if "KeyboardInterrupt" in str(error):  # raised in one of our Python ops
                raise KeyboardInterrupt from error
            raise

    return call


def _alone(make: Callable[[], Any]) -> Any:
    """What ``make`` returns, while no other thread compiles with TorchScript."""
    with _compiling, torch.no_grad():
        return quietly(make)


def _ignore(message: str, category: type[Warning]) -> Any:
    return "ignore", re.compile(message), category, None, 0


_QUIET = (
    _ignore(r"`torch\.jit\.\w+` is deprecated", DeprecationWarning),
    _ignore("", torch.jit._trace.TracerWarning),
    _ignore(r"torch\.quantize_per_tensor, torch\.quantize_per_channel", UserWarning),  # pytorch#184982
)


def quietly(make: Callable[[], Any]) -> Any:
    """What ``make`` returns, without torch's warnings that TorchScript and quantized dtypes are deprecated.

    ``warnings.catch_warnings`` would also drop the filters that other threads set meanwhile.
    """
    filters: Any = warnings.filters

    def put_back() -> None:
        known: Any
        for known in (filters, warnings.filters):
            for ours in _QUIET:
                while ours in known:
                    known.remove(ours)

    try:
        try:
            filters[:0] = _QUIET
            return make()
        finally:
            put_back()
    finally:  # again: an interrupt may have cut the first short
        put_back()


def swallow_deprecation_warning() -> None:
    """Trigger and hide the warning about quantized dtypes that torch issues once per process."""
    quietly(lambda: torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.quint8))
