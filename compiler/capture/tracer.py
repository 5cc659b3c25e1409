"""The tracer: ``torch.fx``, with in-place operators and a record of the module that is being traced."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx, nn
from torch.nn.utils import rnn

# Kept as calls: they branch on lengths, and do not return plain tensors.
SEQUENCES = (rnn.pack_padded_sequence, rnn.pad_packed_sequence, rnn.pack_sequence, rnn.pad_sequence)


class _Proxy(fx.Proxy):
    """Records ``x += y`` as such. ``fx.Proxy`` records ``x = x + y``, which other names of ``x`` do not see."""

    def _in_place(self, function: Callable[..., Any], other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    def __iadd__(self, other: Any) -> Any:
        return self._in_place(operator.iadd, other)

    def __isub__(self, other: Any) -> Any:
        return self._in_place(operator.isub, other)

    def __imul__(self, other: Any) -> Any:
        return self._in_place(operator.imul, other)

    def __itruediv__(self, other: Any) -> Any:
        return self._in_place(operator.itruediv, other)


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
        self.path = ""
        self.returned_input: set[str] = set()
        self.computed: set[str] = set()

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
        outer, self.path = self.path, self.path_of_module(m)
        result = super().call_module(m, forward, args, kwargs)
        self.path = outer  # not in a finally: after a failure it must name the place
        gives_back = bool(args) and result is args[0]
        (self.returned_input if gives_back else self.computed).add(self.path_of_module(m))
        return result
