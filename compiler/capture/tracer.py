"""The tracer: ``torch.fx``, with in-place operators and a record of the module that is being traced."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from torch import fx, nn
from torch.nn.utils import rnn

from ..core.interrupts import checkpoint, put_back_after
from ..core.locks import process_lock
from .in_place import PURE

# Kept as calls: they branch on lengths, and do not return plain tensors.
SEQUENCES = (rnn.pack_padded_sequence, rnn.pad_packed_sequence, rnn.pack_sequence, rnn.pad_sequence)


class _Proxy(fx.Proxy):
    """Records ``x += y`` as such. ``fx.Proxy`` records ``x = x + y``, which other names of ``x`` do not see."""


def _recorded(function: Callable[..., Any]) -> Callable[[fx.Proxy, Any], Any]:
    def method(self: fx.Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


for _function in PURE:
    setattr(_Proxy, f"__{_function.__name__}__", _recorded(_function))


tracing = process_lock()
_REPLACED = "__call__", "__getattr__"  # by torch.fx


def _by_thread(thread: int, traced: Callable[..., Any], own: Callable[..., Any]) -> Callable[..., Any]:
    """A method of ``nn.Module`` that is ``traced`` in one thread, and in all others nn.Module's own."""

    @functools.wraps(own)
    def method(*args: Any, **kwargs: Any) -> Any:
        return (traced if threading.get_ident() == thread else own)(*args, **kwargs)

    return method


def _put_back(methods: dict[str, Any]) -> None:
    for name, method in methods.items():
        setattr(nn.Module, name, method)


class Tracer(fx.Tracer):
    """Records the user's lines, and where tracing failed.

    Attributes:
        path: the module that is being traced, also after a failure.
        returned_input: paths of modules with a call that returned its input.
        computed: paths of modules with a call that did not.
    """

    record_stack_traces = True

    def __init__(self, leaves: tuple[type[nn.Module], ...], paths: frozenset[str]) -> None:
        super().__init__(autowrap_functions=SEQUENCES)
        # Also for calls such as nn.utils.rnn.pack_padded_sequence(...).
        self._autowrap_search.append(rnn)
        self._leaves, self._paths = leaves, paths
        self.path, self._thread = "", threading.get_ident()
        self.returned_input: set[str] = set()
        self.computed: set[str] = set()

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Trace ``root``, while no other thread does: ``torch.fx`` replaces methods of ``nn.Module`` meanwhile."""
        with tracing:
            self._thread = threading.get_ident()
            own = {name: getattr(nn.Module, name) for name in _REPLACED}
            trace = super().trace
            return put_back_after(lambda: trace(root, concrete_args), lambda: _put_back(own))

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        own = {name: getattr(nn.Module, name) for name in _REPLACED}

        @functools.wraps(function)
        def forward(*args: Any) -> Any:
            # The methods of torch.fx are in place now. Modules that other threads call are not traced.
            for name, method in own.items():
                setattr(nn.Module, name, _by_thread(self._thread, getattr(nn.Module, name), method))
            return function(*args)

        return forward, args

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        checkpoint()
        return super().create_node(*args, **kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self._paths or isinstance(m, self._leaves):
            return True
        # torch.ao is never imported: its QuantStub and DeQuantStub are known by where they come from.
        if type(m).__module__.startswith("torch.ao."):
            return True
        return bool(super().is_leaf_module(m, module_qualified_name))

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self._thread:  # in the moment before the methods go by thread
            return forward(*args, **kwargs)
        outer, self.path = self.path, self.path_of_module(m)
        result = super().call_module(m, forward, args, kwargs)
        self.path = outer  # not in a finally: after a failure it must name the place
        gives_back = bool(args) and result is args[0]
        (self.returned_input if gives_back else self.computed).add(self.path_of_module(m))
        return result
