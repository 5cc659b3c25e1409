"""How far each int8 kernel is from the program, given the same integers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from ....compiler.execution.inputs import bind_inputs
from ....compiler.execution.visitor import Visitor
from ...base.frozen_nodes import is_quantize
from ..codegen.emitter import Emitter
from ..runtime.engine import ONEDNN, run_under


class KernelErrors:
    """Call it with inputs of the model: the largest difference of each quantized value, in steps.

    Every kernel is given the integers of the program, not those of the kernels before it, so that differences do not
    add up.

    Args:
        program: the graph of the executed program.
        emitter: holds the lowered graph.
        quantized: the lowered node that holds the integers of each ``quantize`` of the program.
    """

    def __init__(self, program: fx.GraphModule, emitter: Emitter, quantized: Mapping[fx.Node, fx.Node]) -> None:
        self._program, self._emitter = program, emitter
        self._made = {lowered: node for node, lowered in quantized.items() if is_quantize(node)}

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> dict[fx.Node, int]:
        """By ``quantize`` node of the program."""
        integers: dict[fx.Node, Tensor] = {}
        errors: dict[fx.Node, int] = {}

        def keep(node: fx.Node, value: Any) -> Any:
            if is_quantize(node):
                integers[node] = value
            return value

        def compare(node: fx.Node, value: Any) -> Any:
            source = self._made.get(node)
            if source is None or not isinstance(value, Tensor) or not value.is_quantized:
                return value
            exact, given = integers[source], value.int_repr()
            errors[source] = int((exact.int() - given.int()).abs().max()) if exact.numel() else 0
            known = float(value.q_scale()), int(value.q_zero_point())
            return torch._make_per_tensor_quantized_tensor(given.copy_(exact), *known)

        inputs = bind_inputs(self._program, args, kwargs)
        Visitor(self._program, keep).run(*inputs)
        lowered = Visitor(nn.Module(), compare, graph=self._emitter.graph, attributes=self._emitter.constants)
        run_under(ONEDNN, lowered.run, *inputs)
        return errors
