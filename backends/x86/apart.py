"""How far each int8 kernel is from the frozen graph, when both are given the same integers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...compiler.qdq import quantize
from ...compiler.values import bind_inputs
from .emitter import Emitter
from .engine import ONEDNN, engine


class Apart:
    """Call it with inputs of the model, for the largest difference of each quantized value, in steps.

    Every kernel gets the integers of the frozen graph, not what the kernels before it gave: differences do not add up.

    Args:
        frozen: the frozen graph.
        emitter: holds what it was lowered to.
        quantized: the node that holds the integers of each ``quantize`` of the frozen graph.
    """

    def __init__(self, frozen: fx.GraphModule, emitter: Emitter, quantized: Mapping[fx.Node, fx.Node]) -> None:
        self.frozen, self.emitter = frozen, emitter
        self.made = {int8: node for node, int8 in quantized.items() if node.target is quantize}

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> dict[fx.Node, int]:
        """By ``quantize`` node of the frozen graph."""
        inputs = bind_inputs(self.frozen, args, kwargs)
        exact = _Integers(self.frozen)
        exact.run(*inputs)
        kernels = _Kernels(self, exact.integers)
        with engine(ONEDNN):
            kernels.run(*inputs)
        return kernels.apart


class _Integers(fx.Interpreter):
    """Keeps every quantized value of a frozen graph."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.integers: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.target is quantize:
            self.integers[n] = result
        return result


class _Kernels(fx.Interpreter):
    """Runs the lowered graph on the frozen graph's integers."""

    def __init__(self, of: Apart, integers: Mapping[fx.Node, Tensor]) -> None:
        super().__init__(nn.Module(), graph=of.emitter.graph)
        self.constants, self.made, self.integers = of.emitter.constants, of.made, integers
        self.apart: dict[fx.Node, int] = {}

    def fetch_attr(self, target: str) -> Any:
        return self.constants[target]

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.constants[target](*args, **kwargs)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        frozen = self.made.get(n)
        if frozen is None or not isinstance(result, Tensor) or not result.is_quantized:
            return result
        exact, given = self.integers[frozen], result.int_repr()
        self.apart[frozen] = int((exact.int() - given.int()).abs().max()) if exact.numel() else 0
        known = float(result.q_scale()), int(result.q_zero_point())
        return torch._make_per_tensor_quantized_tensor(given.copy_(exact), *known)
