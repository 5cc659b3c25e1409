r"""Learned rounding of weights (AdaRound, Nagel et al. 2020, arXiv:2004.10568).

Rounding to the nearest integer does not give the least error at the output of a layer. Each weight may go up or down:

.. math:: \tilde W = s \, clip(\lfloor W / s \rfloor + h(V)), \qquad
    h(V) = clip(1.2 \, \sigma(V) - 0.1, 0, 1),

and ``V`` is learned to minimize the error of the layer's output, with its inputs in the quantized model, plus
:math:`\lambda \sum (1 - |2 h(V) - 1|^\beta)`, which drives every :math:`h` to 0 or 1 as :math:`\beta` falls.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ...backends.ops.units import Unit
from ...compiler.core.interrupts import checkpoint
from ...compiler.execution.graphs import GraphCopy, attribute
from ...compiler.numerics.quantize import along, dequantize_channels
from .frozen_layers import bias_node, integer_weight

ITERATIONS = 1000
ITEMS = 32  # per iteration
RATE = 1e-2
REGULARIZER = 0.01
BETA = (20.0, 2.0)  # from, to
WARM_UP = 0.2  # share of the iterations without the regularizer
STRETCH = (-0.1, 1.1)

Pair = tuple[Tensor, Tensor]


def _split(pairs: Sequence[Pair], batched: bool) -> tuple[Sequence[Pair], Sequence[Pair]]:
    """Pairs to learn from, and pairs to check with: a quarter of the batches, or of the items of a single batch."""
    if len(pairs) > 1:
        checks = max(1, len(pairs) // 4)
        return pairs[:-checks], pairs[-checks:]
    ((x, wanted),) = pairs
    if not batched or len(x) == 1:
        return pairs, pairs
    learns = max(1, 3 * len(x) // 4)
    return [(x[:learns], wanted[:learns])], [(x[learns:], wanted[learns:])]


class RoundingLearner:
    """One layer: its float weight, its integers, and pairs of inputs and wanted outputs."""

    def __init__(self, gm: fx.GraphModule, exact: GraphCopy, unit: Unit, pairs: Sequence[Pair]) -> None:
        layer: Any = exact.module.get_submodule(str(exact.of[unit.root].target))
        self.batched = pairs[0][0].dim() >= layer.weight.dim()
        self.learns, self.checks = _split(pairs, self.batched)
        self.integers = attribute(gm, integer_weight(unit))
        _, scale, zero_point, axis = unit.root.args[1].args  # type: ignore[union-attr]
        self.scale, self.zero_point, self.axis = attribute(gm, scale), attribute(gm, zero_point), axis  # type: ignore[arg-type]
        self.function = unit.root.target
        self.options = {k: v for k, v in unit.root.kwargs.items() if k != "bias"}
        self.bias = attribute(gm, bias_node(unit))
        # The float weight in steps of the grid, bounded by the extremes of the integers.
        weight = layer.weight.detach()
        steps = weight / along(self.scale, weight, self.axis) + along(self.zero_point, weight, self.axis)  # type: ignore[arg-type]
        self.low, self.high = float(self.integers.min()), float(self.integers.max())
        self.floor = steps.floor().clamp(self.low, self.high)
        self.rest = (steps - self.floor).clamp(0, 1)

    def learn(self, seconds: float) -> str:
        """Change the integers in place if that lowers the output error on the pairs to check with. Returns a remark."""
        before = self._error(self.integers)
        if before == 0:
            return "rounding to nearest kept: it is exact"
        low, high = STRETCH
        start = torch.logit(((self.rest - low) / (high - low)).clamp(1e-4, 1 - 1e-4))
        logits = start.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([logits], lr=RATE)
        seeded = torch.Generator().manual_seed(0)
        began = time.monotonic()
        for step in range(ITERATIONS):
            checkpoint()
            done = max(step / ITERATIONS, (time.monotonic() - began) / seconds)
            if done >= 1:
                break
            x, wanted = self._draw(seeded)
            with torch.enable_grad():
                up = (torch.sigmoid(logits) * (high - low) + low).clamp(0, 1)
                loss = (self._output(x, (self.floor + up).clamp(self.low, self.high)) - wanted).square().mean() * len(
                    self.bias
                )
                if done > WARM_UP:
                    beta = BETA[0] + (BETA[1] - BETA[0]) * (done - WARM_UP) / (1 - WARM_UP)
                    loss = loss + REGULARIZER * (1 - (2 * up - 1).abs().pow(beta)).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        learned = (self.floor + (logits.detach() > 0)).clamp(self.low, self.high).to(self.integers.dtype)
        after = self._error(learned)
        if after >= before:
            return f"rounding to nearest kept: learned, the output error would be {after / before:.0%} of that"
        self.integers.copy_(learned)
        return f"rounding learned: output error {after / before:.0%} of that of nearest"

    def _draw(self, seeded: torch.Generator) -> tuple[Tensor, Tensor]:
        x, wanted = self.learns[int(torch.randint(len(self.learns), (1,), generator=seeded))]
        if not self.batched:
            return x, wanted
        chosen = torch.randperm(len(x), generator=seeded)[:ITEMS]
        return x[chosen], wanted[chosen]

    def weight(self, integers: Tensor | None = None) -> Tensor:
        """The float values of ``integers`` (default: those of the layer)."""
        chosen = self.integers if integers is None else integers
        return dequantize_channels(chosen, self.scale, self.zero_point, self.axis)  # type: ignore[arg-type]

    def _output(self, x: Tensor, integers: Tensor) -> Tensor:
        weight = self.weight(integers)
        return self.function(x, weight, bias=self.bias, **self.options)  # type: ignore[operator]

    def _error(self, integers: Tensor) -> float:
        with torch.no_grad():
            return sum(float((self._output(x, integers) - w).double().square().sum()) for x, w in self.checks)
