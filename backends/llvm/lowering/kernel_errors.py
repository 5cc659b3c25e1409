"""How far each step is from the program, given the same integers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from ....compiler.execution.visitor import Visitor
from ...base.frozen_nodes import is_quantize
from .loops import by_round
from .plan import Plan
from .steps import FillStep
from .storage import Storage
from .values import Value


def kernel_errors(
    gm: fx.GraphModule, plan: Plan, quantized: Mapping[fx.Node, tuple[Value, int]], given: Mapping[fx.Node, Any]
) -> dict[fx.Node, int]:
    """The largest difference of each quantized value, in steps.

    Every kernel is given the integers of the program, not those of the kernels before it, so that differences do not
    add up.

    Args:
        quantized: the tensor of each ``quantize`` node, and what is added to the integers of the program.
    """
    integers: dict[fx.Node, Tensor] = {}

    def keep(node: fx.Node, value: Any) -> Any:
        if is_quantize(node):
            integers[node] = value
        return value

    with torch.no_grad():
        Visitor(gm, keep).run(*given.values())
    checks = _checks(plan, quantized)
    errors: dict[fx.Node, int] = {}

    def compare(index: int, arena: Any) -> None:
        for node in checks.get(index, ()):
            value, shift = quantized[node]
            held, exact = plan.view(arena, value, given), integers[node].int() + shift
            errors[node] = int((held.int() - exact).abs().max()) if exact.numel() else 0
            held.copy_(exact)

    plan.run(given, after=compare)
    return errors


def _checks(plan: Plan, quantized: Mapping[fx.Node, tuple[Value, int]]) -> dict[int, list[fx.Node]]:
    """By the index of a step as it runs, the quantize nodes whose tensor it completes."""
    last: dict[Storage, int] = {}
    for index, (step, _) in enumerate(by_round(plan.steps)):
        if isinstance(step, FillStep) or step.target is None:
            continue
        storage: Storage | None = step.target.storage
        while storage is not None:
            last[storage] = index
            storage = storage.parent[0] if storage.parent else None
    found: dict[int, list[fx.Node]] = {}
    for node, (value, _) in quantized.items():
        if value.whole and value.storage in last:
            found.setdefault(last[value.storage], []).append(node)
    return found
