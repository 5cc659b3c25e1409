r"""Empirical bias correction (Nagel et al. 2019, arXiv:1906.04721, section 4.2 and appendix D).

Quantization shifts the mean of a layer's outputs. Layer by layer, each given the corrected ones before it, the mean
error per output channel over a sample is taken off the bias:

.. math:: b_c' = b_c - \lambda_c \, \bar e_c, \qquad \bar e_c = E[\hat y_c - y_c].

A small sample gives a noisy mean, and taking noise off adds noise. With :math:`v_c` the variance of
:math:`\bar e_c` over the items of the sample, and
:math:`\tau^2 = \max(0, mean_c(\bar e_c^2 - v_c))` the variance of the true errors over the channels,
:math:`\lambda_c = \tau^2 / (\tau^2 + v_c)` (empirical Bayes; Efron and Morris 1973).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from ..backends.units import Unit
from ..compiler.batches import Batch
from ..compiler.lockstep import Stepper, Twin, sqnr, surely_nearer
from ..compiler.values import attribute
from .assign_precision import Assignment
from .base import PassResult
from .freeze import channel_axis, frozen_layers

SETTLED = 1e-3  # of a channel's deviation: a smaller mean error is not worth a change


def correct_bias(gm: fx.GraphModule, twin: Twin, assignment: Assignment, sample: Sequence[Batch]) -> PassResult:
    """Correct the biases of a frozen graph, in one pass over ``sample``, and one over half of it to compare with.

    Where a layer's ``correct_bias`` is "auto", its correction is taken back unless the model's output on the sample
    is surely nearer to the exact one with all of them.
    """
    layers = [u for u in frozen_layers(gm, assignment) if assignment.config_of(u).correct_bias is not False]
    refusals, remarks, undo = dict[fx.Node, str](), dict[fx.Node, str](), list[tuple[fx.Node, Tensor, Tensor]]()
    if not layers:
        return PassResult(0)
    compared = sample[: (len(sample) + 1) // 2]
    before = Stepper(gm, compared).finish()
    exact, rounded = Stepper(twin.module, sample), Stepper(gm, sample)
    calls = Counter(str(_bias(u).target) for u in layers)
    for unit in layers:
        wanted, given = exact.through(twin.of[unit.root]), rounded.through(unit.root)
        if calls[str(_bias(unit).target)] > 1:
            refusals[unit.root] = f"bias not corrected: the layer is called {calls[str(_bias(unit).target)]} times"
            continue
        axis = channel_axis(gm, unit)
        errors = torch.cat([_mean_error(w, g, axis) for w, g in zip(wanted, given, strict=True)])
        if len(errors) < 2:
            refusals[unit.root] = "bias not corrected: a sample of one item does not tell error from chance"
            continue
        shift = _shrunk(errors)
        deviation = torch.cat([w.movedim(axis, 0).reshape(w.shape[axis], -1) for w in wanted], 1).std(1)
        if (shift.abs() < SETTLED * deviation).all():
            continue
        bias = attribute(gm, _bias(unit))
        if assignment.config_of(unit).correct_bias == "auto":
            undo.append((unit.root, bias, bias.clone()))
        bias -= shift
        rounded.change(unit.root, _subtract(shift, axis))
        share = float((shift.abs() / deviation.clamp_min(1e-30)).max())
        remarks[unit.root] = f"bias corrected by up to {share:.1%} of a channel's deviation"
    wanted, after = (s.finish()[: len(compared)] for s in (exact, rounded))
    if undo and not surely_nearer(wanted, before, after):
        was, now = sqnr(wanted, before), sqnr(wanted, after)
        reason = f"bias not corrected: no sure gain at the model's output ({was:.1f} dB, corrected {now:.1f} dB)"
        for node, bias, old in undo:
            bias.copy_(old)
            refusals[node] = reason
            del remarks[node]
    return PassResult(len(remarks), refusals, remarks)


def _bias(unit: Unit) -> fx.Node:
    return unit.root.kwargs["bias"]  # type: ignore[return-value]


def _mean_error(wanted: Tensor, given: Tensor, axis: int) -> Tensor:
    """Mean error per channel for each item of the first axis, if there is one: ``(items, channels)``."""
    error = given - wanted
    error = (error[None] if error.dim() == -axis else error).movedim(axis, -1)
    return error.reshape(len(error), -1, error.shape[-1]).mean(1)


def _shrunk(errors: Tensor) -> Tensor:
    """The mean of ``errors`` over the items, drawn towards zero as far as it may be chance."""
    mean, chance = errors.mean(0), errors.var(0) / len(errors)
    real = (mean.square().mean() - chance.mean()).clamp_min(0)
    return mean * real / (real + chance).clamp_min(1e-30)


def _subtract(shift: Tensor, axis: int) -> Callable[[Tensor], Tensor]:
    return lambda value: value - shift.reshape(-1, *[1] * (-axis - 1))
