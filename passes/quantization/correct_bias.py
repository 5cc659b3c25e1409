r"""Empirical bias correction (Nagel et al. 2019, arXiv:1906.04721, section 4.2 and appendix D).

Quantization shifts the mean of the output of a layer. In the order in which the layers run, the mean error of each
output channel over a sample is subtracted from the bias:

.. math:: b_c' = b_c - \lambda_c \, \bar e_c, \qquad \bar e_c = E[\hat y_c - y_c].

A small sample gives a noisy mean, and subtracting noise adds noise. With :math:`v_c` the variance of
:math:`\bar e_c` over the items of the sample, and
:math:`\tau^2 = \max(0, mean_c(\bar e_c^2 - v_c))` the variance of the true errors over the channels,
:math:`\lambda_c = \tau^2 / (\tau^2 + v_c)` (empirical Bayes; Efron and Morris 1973).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from ...backends.ops.units import Unit, clamp_bounds
from ...compiler.core.progress import progress
from ...compiler.execution.graphs import GraphCopy, attribute
from ...compiler.execution.sample import Batch
from ...compiler.execution.stepper import Stepper
from ...compiler.numerics.metrics import sqnr, surely_nearer
from ..base import PassResult
from .frozen_layers import LayerAdjustment, bias_node, channel_axis

SETTLED = 1e-3  # of the standard deviation of a channel: a smaller mean error is not corrected


class CorrectBias(LayerAdjustment):
    """Runs the model twice on the sample, and once on half of it to compare with.

    If ``correct_bias`` of a layer is "auto", its correction is undone unless all corrections together surely bring the
    output of the model on the sample nearer to the exact one.
    """

    name = "correct_bias"

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        layers = self._next_layers(gm)
        if not layers:
            return PassResult(0)
        correction = _Correction(gm, self._exact, self._sample)
        for unit in progress(layers, "correct biases", "layer", len(layers)):
            correction.correct(unit, undoable=self._switch(unit) == "auto")
        correction.undo_unless_better()
        return PassResult(len(correction.remarks), correction.refusals, correction.remarks)

    def _wants(self, unit: Unit) -> bool:
        return self._switch(unit) is not False

    def _switch(self, unit: Unit) -> object:
        return self._assignment.config_of(unit).correct_bias


class _Correction:
    """The corrections of one graph."""

    def __init__(self, gm: fx.GraphModule, exact: GraphCopy, sample: Sequence[Batch]) -> None:
        self.gm, self.of = gm, exact.of
        self.refusals, self.remarks = dict[fx.Node, str](), dict[fx.Node, str]()
        self._undo: list[tuple[fx.Node, Tensor, Tensor]] = []
        self._compared = (len(sample) + 1) // 2
        self._before = Stepper(gm, sample[: self._compared]).finish()
        self._exact, self._rounded = Stepper(exact.module, sample), Stepper(gm, sample)
        self._calls = Counter(str(n.target) for n in gm.graph.nodes if n.op == "get_attr")

    def correct(self, unit: Unit, undoable: bool) -> None:
        """Correct the bias of one layer; layers come in the order in which they run."""
        root = unit.root
        wanted, given = self._exact.through(self.of[root]), self._rounded.through(root)
        calls = self._calls[str(bias_node(unit).target)]
        if calls > 1:
            self.refusals[root] = f"bias not corrected: the layer is called {calls} times"
            return
        axis = channel_axis(self.gm, unit)
        errors = torch.cat([_mean_error(w, g, axis) for w, g in zip(wanted, given, strict=True)])
        if len(errors) < 2:
            self.refusals[root] = "bias not corrected: the sample has one item, and two are needed"
            return
        shift = _helpful(_shrunk(errors), wanted, given, axis, clamp_bounds(unit))
        deviation = torch.cat([w.movedim(axis, 0).reshape(w.shape[axis], -1) for w in wanted], 1).std(1)
        if (shift.abs() < SETTLED * deviation).all():
            return
        value = attribute(self.gm, bias_node(unit))
        if undoable:
            self._undo.append((root, value, value.clone()))
        value -= shift
        self._rounded.change(root, _subtract(shift, axis))
        share = float((shift.abs() / deviation.clamp_min(1e-30)).max())
        self.remarks[root] = f"bias corrected by up to {share:.1%} of a channel's standard deviation"

    def undo_unless_better(self) -> None:
        """Run to the end, and take the corrections back that may be, unless they surely help."""
        wanted, after = (s.finish()[: self._compared] for s in (self._exact, self._rounded))
        if not self._undo or surely_nearer(wanted, self._before, after):
            return
        was, now = sqnr(wanted, self._before), sqnr(wanted, after)
        reason = f"bias not corrected: no significant gain at the model's output ({was:.1f} dB, corrected {now:.1f} dB)"
        for node, value, old in self._undo:
            value.copy_(old)
            self.refusals[node] = reason
            del self.remarks[node]


def _mean_error(wanted: Tensor, given: Tensor, axis: int) -> Tensor:
    """The mean error per channel, for each item of the first axis: ``(items, channels)``."""
    error = given - wanted
    error = (error[None] if error.dim() == -axis else error).movedim(axis, -1)
    return error.reshape(len(error), -1, error.shape[-1]).mean(1)


def _shrunk(errors: Tensor) -> Tensor:
    """The mean of ``errors`` over the items, shrunk towards zero as far as it may be chance."""
    mean, chance = errors.mean(0), errors.var(0) / len(errors)
    real = (mean.square().mean() - chance.mean()).clamp_min(0)
    return mean * real / (real + chance).clamp_min(1e-30)


def _helpful(
    shift: Tensor, wanted: Sequence[Tensor], given: Sequence[Tensor], axis: int, bounds: tuple[float, float] | None
) -> Tensor:
    """``shift`` of the channels whose squared error falls behind the clamp of the layer; 0 of the others.

    Large errors of few values, as clipping makes them, may shift a mean that hardly any value has.
    """
    if bounds is None:
        return shift
    gains = torch.zeros_like(shift)
    for exact, ours in zip(wanted, given, strict=True):
        goal = exact.clamp(*bounds)
        before, after = ((x.clamp(*bounds) - goal).square() for x in (ours, _subtract(shift, axis)(ours)))
        gains += (before - after).movedim(axis, -1).reshape(-1, len(shift)).sum(0)
    return torch.where(gains > 0, shift, 0.0)


def _subtract(shift: Tensor, axis: int) -> Callable[[Tensor], Tensor]:
    return lambda value: value - shift.reshape(-1, *[1] * (-axis - 1))
