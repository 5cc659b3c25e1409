"""Building the lowered graph, and turning it into straight-line code."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ....compiler.core.qparams import QParams
from ....compiler.core.tensors import tensor_bytes
from ...base.dynamic_layer import module_bytes
from ..runtime.engine import ONEDNN, under_engine

_OP = re.compile(r"torch\.ops\.(\w+)\.(\w+)\.(\w+)\(")


class Emitter:
    """A lowered graph under construction.

    Attributes:
        graph: its nodes; constants are ``get_attr``, kept fp32 modules ``call_module``.
        constants: what those nodes refer to, by name.
        needs_onednn: nodes whose kernel reads torch's quantized engine at run time.
    """

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.constants: dict[str, Any] = {}
        self.needs_onednn: set[fx.Node] = set()

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """A call of ``target``."""
        return self.graph.call_function(target, args, kwargs)

    def call_onednn(self, target: Callable[..., Any], *args: Any) -> fx.Node:
        """A call of ``target`` that runs only with the engine oneDNN."""
        node = self.call(target, *args)
        self.needs_onednn.add(node)
        return node

    def constant(self, value: Any, name: str = "constant") -> fx.Node:
        """A constant of the code: packed weights, or a tensor."""
        return self.graph.get_attr(self._keep(value, name))

    def late_constant(self, make: Callable[[], Tensor], name: str) -> fx.Node:
        """A constant that is made only if the graph reads it in the end."""
        return self.graph.get_attr(self._keep(_Late(make), name))

    def resolve(self) -> dict[str, Any]:
        """The constants that the graph reads; all others are dropped."""
        self.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
        used = {str(n.target) for n in self.graph.nodes if n.op in ("get_attr", "call_module")}
        kept = {k: v for k, v in self.constants.items() if k in used}
        self.constants = {k: v.make() if isinstance(v, _Late) else v for k, v in kept.items()}
        return self.constants

    def module(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        """A call of a module that stays in fp32."""
        return self.graph.call_module(self._keep(module, type(module).__name__.lower()), args, kwargs)

    def quantize(self, x: fx.Node, known: QParams, channels_last: bool = False) -> fx.Node:
        """An fp32 node quantized to quint8. ``channels_last``: an image, whose reader may be a convolution."""
        x = self.image(x) if channels_last else x
        return self.call(torch.ops.aten.quantize_per_tensor.default, x, known.scale, known.zero_point, torch.quint8)

    def image(self, x: fx.Node) -> fx.Node:
        """A node of four axes in channels_last, the memory layout of the convolutions."""
        return self.graph.call_method("contiguous", (x,), {"memory_format": torch.channels_last})

    def dequantize(self, q: fx.Node) -> fx.Node:
        """A quint8 node as fp32."""
        return self.call(torch.ops.aten.dequantize.self, q)

    def _keep(self, value: Any, name: str) -> str:
        for known, kept in self.constants.items():
            if kept is value:
                return known
        name = f"{name}_{len(self.constants)}"
        self.constants[name] = value
        return name

    def compile(self) -> tuple[Callable[..., Any], dict[str, Any]]:
        """A function of an object that holds the constants, and of the inputs; and the constants.

        It has one line per op, and sets torch's quantized engine if an op needs that.
        """
        constants = self.resolve()
        self.graph.lint()
        code = self.graph.python_code("self")
        bound = dict(code.globals)

        def bind(match: re.Match[str]) -> str:
            name = "op_" + "_".join(match.groups())
            space, op, overload = match.groups()
            # The handle below OpOverload.__call__, which only forwards to it.
            bound[name] = getattr(getattr(getattr(torch.ops, space), op), overload)._op
            return f"{name}("

        exec(compile(_OP.sub(bind, code.src), "<fxquant lowered>", "exec"), bound)
        forward = bound["forward"]
        needs_engine = not self.needs_onednn.isdisjoint(self.graph.nodes)
        return under_engine(ONEDNN, forward) if needs_engine else forward, constants

    def straight_line(self) -> Callable[..., Any]:
        """The graph as a Python function of its inputs."""
        forward, constants = self.compile()
        return partial(forward, SimpleNamespace(**constants))

    def weight_bytes(self) -> int:
        """Bytes of the constants that the graph reads: int8 weights with their fp32 scales and biases."""
        return sum(map(_bytes, self.resolve().values()))


@dataclass(frozen=True)
class _Late:
    make: Callable[[], Tensor]


def _bytes(value: Any) -> int:
    if isinstance(value, nn.Module):
        return module_bytes(value)
    if isinstance(value, Tensor):
        size = tensor_bytes(value)
        per_channel = value.is_quantized and value.qscheme() != torch.per_tensor_affine
        return size + (value.q_per_channel_scales().numel() * 4 if per_channel else 0)
    if hasattr(value, "unpack"):
        return sum(_bytes(t) for t in value.unpack() if isinstance(t, Tensor))
    return 0
