"""Learned rounding of weights, see :mod:`.rounding_learner`."""

from __future__ import annotations

import time
from collections import Counter

import torch
from torch import fx

from ...backends.ops.units import Unit
from ...compiler.core.errors import StateError
from ...compiler.core.progress import progress
from ...compiler.execution.stepper import Stepper
from ..base import PassResult
from .frozen_layers import LayerAdjustment, integer_weight
from .rounding_learner import RoundingLearner


class LearnRounding(LayerAdjustment):
    """Learns each layer whose ``rounding`` is "learned", in order, within the time budget."""

    name = "learn_rounding"

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        layers = self._next_layers(gm)
        if not layers:
            return PassResult(0)
        if torch.is_inference_mode_enabled():
            raise StateError("Learned rounding needs gradients: compile outside of torch.inference_mode().")
        refusals, remarks = dict[fx.Node, str](), dict[fx.Node, str]()
        calls = Counter(str(integer_weight(u).target) for u in layers)
        exact, rounded = Stepper(self._exact.module, self._sample), Stepper(gm, self._sample)
        end = time.monotonic() + self._assignment.config.default.rounding_seconds
        for number, unit in enumerate(progress(layers, "learn rounding", "layer", len(layers))):
            inputs, wanted = rounded.before(unit.root), exact.through(self._exact.of[unit.root])
            seconds = (end - time.monotonic()) / (len(layers) - number)
            if calls[str(integer_weight(unit).target)] > 1:
                refusals[unit.root] = "rounded to nearest: the layer is called more than once"
            elif seconds <= 0:
                refusals[unit.root] = "rounded to nearest: rounding_seconds is used up"
            else:
                pairs = [(a[0], w) for a, w in zip(inputs, wanted, strict=True)]
                learner = RoundingLearner(gm, self._exact, unit, pairs)
                remarks[unit.root] = learner.learn(seconds)
                # The node of the weight has run already, with the old integers.
                learned = learner.weight()
                rounded.change(unit.root.args[1], lambda _, w=learned: w)  # type: ignore[arg-type,misc]
        return PassResult(len(remarks), refusals, remarks)

    def _wants(self, unit: Unit) -> bool:
        return self._assignment.config_of(unit).rounding == "learned"
