r"""Learned rounding of weights (AdaRound, Nagel et al. 2020, arXiv:2004.10568).

To round to the nearest is not what keeps a layer's output. Each weight may go up or down:

.. math:: \tilde W = s \, clip(\lfloor W / s \rfloor + h(V)), \qquad
    h(V) = clip(1.2 \, \sigma(V) - 0.1, 0, 1),

and ``V`` is learned to minimise the error of the layer's output, given what reaches it in the quantized model, plus
:math:`\lambda \sum (1 - |2 h(V) - 1|^\beta)`, which drives every :math:`h` to 0 or 1 as :math:`\beta` falls.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from tqdm import tqdm

from ..backends.units import Unit
from ..compiler.batches import Batch
from ..compiler.errors import StateError
from ..compiler.lockstep import Stepper, Twin
from ..compiler.qdq import along, dequantize_channels
from ..compiler.values import attribute
from .assign_precision import Assignment
from .base import PassResult
from .freeze import frozen_layers, integer_weight

ITERATIONS = 1000
ITEMS = 32  # per iteration
RATE = 1e-2
REGULARIZER = 0.01
BETA = (20.0, 2.0)  # from, to
WARM_UP = 0.2  # share of the iterations without the regularizer
STRETCH = (-0.1, 1.1)


class LearnRounding:
    """Learns the layers whose ``rounding`` is "learned", in order, within their time budget."""

    name = "learn_rounding"

    def __init__(self, twin: Twin, assignment: Assignment, sample: Sequence[Batch]) -> None:
        self.twin, self.assignment, self.sample = twin, assignment, sample

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        layers = [u for u in frozen_layers(gm, self.assignment) if self._config(u).rounding == "learned"]
        if not layers:
            return PassResult(0)
        if torch.is_inference_mode_enabled():
            raise StateError("Learned rounding needs gradients: compile outside of torch.inference_mode().")
        refusals, remarks = dict[fx.Node, str](), dict[fx.Node, str]()
        calls = Counter(str(integer_weight(u).target) for u in layers)
        exact, rounded = Stepper(self.twin.module, self.sample), Stepper(gm, self.sample)
        end = time.monotonic() + self.assignment.config.default.rounding_seconds
        for number, unit in enumerate(tqdm(layers, "learn rounding", unit="layer", disable=None, leave=False)):
            inputs, wanted = rounded.before(unit.root), exact.through(self.twin.of[unit.root])
            seconds = (end - time.monotonic()) / (len(layers) - number)
            if calls[str(integer_weight(unit).target)] > 1:
                refusals[unit.root] = "rounded to nearest: the layer is called more than once"
            elif seconds <= 0:
                refusals[unit.root] = "rounded to nearest: rounding_seconds is used up"
            else:
                learner = _Learner(gm, self.twin, unit, [(a[0], w) for a, w in zip(inputs, wanted, strict=True)])
                remarks[unit.root] = learner.learn(seconds)
                # It has run already, with the integers as they were.
                learned = learner.weight()
                rounded.change(unit.root.args[1], lambda _, w=learned: w)  # type: ignore[arg-type,misc]
        return PassResult(len(remarks), refusals, remarks)

    def _config(self, unit: Unit) -> Any:
        return self.assignment.config_of(unit)


Pair = tuple[Tensor, Tensor]


def _split(pairs: Sequence[Pair], batched: bool) -> tuple[Sequence[Pair], Sequence[Pair]]:
    """What to learn from, and what to check on: a quarter of the batches, or of the items of a single one."""
    if len(pairs) > 1:
        checks = max(1, len(pairs) // 4)
        return pairs[:-checks], pairs[-checks:]
    ((x, wanted),) = pairs
    if not batched or len(x) == 1:
        return pairs, pairs
    learns = max(1, 3 * len(x) // 4)
    return [(x[:learns], wanted[:learns])], [(x[learns:], wanted[learns:])]


class _Learner:
    """One layer: its float weight, its integers, and pairs of what reaches it and what it should give."""

    def __init__(self, gm: fx.GraphModule, twin: Twin, unit: Unit, pairs: Sequence[Pair]) -> None:
        layer: Any = twin.module.get_submodule(str(twin.of[unit.root].target))
        self.batched = pairs[0][0].dim() >= layer.weight.dim()
        self.learns, self.checks = _split(pairs, self.batched)
        self.integers = attribute(gm, integer_weight(unit))
        _, scale, zero_point, axis = unit.root.args[1].args  # type: ignore[union-attr]
        self.scale, self.zero_point, self.axis = attribute(gm, scale), attribute(gm, zero_point), axis  # type: ignore[arg-type]
        self.function = unit.root.target
        self.options = {k: v for k, v in unit.root.kwargs.items() if k != "bias"}
        self.bias = attribute(gm, unit.root.kwargs["bias"])  # type: ignore[arg-type]
        # What the float weight is in steps of the grid; the integers' own extremes bound it.
        weight = layer.weight.detach()
        steps = weight / along(self.scale, weight, self.axis) + along(self.zero_point, weight, self.axis)  # type: ignore[arg-type]
        self.low, self.high = float(self.integers.min()), float(self.integers.max())
        self.floor = steps.floor().clamp(self.low, self.high)
        self.rest = (steps - self.floor).clamp(0, 1)

    def learn(self, seconds: float) -> str:
        """Change the integers in place if that lowers the output error on unseen pairs. Returns what happened."""
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
            progress = max(step / ITERATIONS, (time.monotonic() - began) / seconds)
            if progress >= 1:
                break
            x, wanted = self._draw(seeded)
            with torch.enable_grad():
                up = (torch.sigmoid(logits) * (high - low) + low).clamp(0, 1)
                loss = (self._output(x, (self.floor + up).clamp(self.low, self.high)) - wanted).square().mean() * len(
                    self.bias
                )
                if progress > WARM_UP:
                    beta = BETA[0] + (BETA[1] - BETA[0]) * (progress - WARM_UP) / (1 - WARM_UP)
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
        """The float values of ``integers``; of the layer's own without."""
        chosen = self.integers if integers is None else integers
        return dequantize_channels(chosen, self.scale, self.zero_point, self.axis)  # type: ignore[arg-type]

    def _output(self, x: Tensor, integers: Tensor) -> Tensor:
        weight = self.weight(integers)
        return self.function(x, weight, bias=self.bias, **self.options)  # type: ignore[operator]

    def _error(self, integers: Tensor) -> float:
        with torch.no_grad():
            return sum(float((self._output(x, integers) - w).double().square().sum()) for x, w in self.checks)
