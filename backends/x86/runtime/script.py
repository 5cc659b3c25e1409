"""TorchScript, one thread at a time, without its deprecation warnings, and without what it keeps for ever."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ....compiler.core.interrupts import put_back_after
from ....compiler.core.locks import process_lock

Run = Callable[..., Any]

_compiling = process_lock()  # TorchScript's tracer and compiler keep state of the process


def script(function: Callable[..., Any]) -> Any:
    """Compile a function. Raises whatever TorchScript raises."""
    return _alone(lambda: torch.jit.script(function))


def script_module(module: nn.Module) -> Run:
    """Compile the forward() of ``module``. Raises whatever TorchScript raises."""
    return _alone(lambda: _Owned(torch.jit.script(module), module).run)


def trace(module: nn.Module, inputs: Sequence[Any]) -> Run:
    """The computation of ``module`` on ``inputs``. Raises whatever TorchScript raises."""
    return _alone(lambda: _Owned(torch.jit.trace(module, tuple(inputs), check_trace=False), module).run)


class _Owned:
    """The forward() of a TorchScript module as a function that owns its graph.

    TorchScript keeps the types of all modules for ever, and with them the graphs of their methods, which hold
    constants. So the graph becomes a function of its own, which is freed with its last user. It is not frozen: that
    copies the graph into one more type, and makes nothing faster where kernels do the work.

    Args:
        compiled: the module; its graph is emptied.
        source: what it was made from.
    """

    def __init__(self, compiled: Any, source: nn.Module) -> None:
        graph = compiled.graph.copy()
        torch._C._jit_pass_inline(graph)
        self._module = compiled
        self._function = torch._C._create_function_from_graph("forward", graph)
        _empty(compiled.graph)
        torch.jit._recursive.concrete_type_store.type_store.pop(type(source), None)

    def run(self, *args: Any) -> Any:
        try:
            return self._function(self._module, *args)
        except RuntimeError as error:
            if "KeyboardInterrupt" in str(error):  # raised in one of our Python ops
                raise KeyboardInterrupt from error
            raise


def _empty(graph: Any) -> None:
    for _ in list(graph.outputs()):
        graph.eraseOutput(0)
    for node in reversed(list(graph.nodes())):
        node.destroy()


def _alone(make: Callable[[], Any]) -> Any:
    """What ``make`` returns, while no other thread compiles with TorchScript."""
    with _compiling, torch.no_grad():
        return quietly(make)


def _ignore(message: str, category: type[Warning]) -> Any:
    return "ignore", re.compile(message), category, None, 0


_QUIET = (
    _ignore(r"`torch\.jit\.\w+` is deprecated", DeprecationWarning),
    _ignore(r"The TorchScript type system doesn't support instance-level annotations", UserWarning),
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

    def work() -> Any:
        filters[:0] = _QUIET
        return make()

    return put_back_after(work, put_back)


def swallow_deprecation_warning() -> None:
    """Trigger and hide the warning about quantized dtypes that torch issues once per process."""
    quietly(lambda: torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.quint8))
