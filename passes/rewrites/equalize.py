r"""Cross-layer equalization of weight ranges (Nagel et al. 2019, arXiv:1906.04721, section 4.1).

With a scale :math:`s_c` per class of channels (:mod:`fxquant.passes.analysis.channels`), the outputs of its producers
are divided by :math:`s_c`, and the inputs of its consumers are multiplied. The scale makes both ranges equal,

.. math:: s_c = \sqrt{r^{out}_c / r^{in}_c},

where :math:`r^{out}_c` is the largest weight that makes the channel and :math:`r^{in}_c` the largest that reads it,
over all producers and all consumers of the class. All classes take a step at once, until none moves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from ...compiler.execution.sample import Batch
from ..analysis.channels import Port, ScaleClasses, scale_classes
from ..analysis.choice import nothing_against
from ..base import PassResult
from ..layers.layer_weight import by_channels, rescale

STEPS = 1000
TOLERANCE = 0.01  # of the natural logarithm of a scale: smaller steps make no difference at 8 bits


class Equalize:
    """Exact. Refuses a layer whose output channels cannot be scaled, with the reason.

    Args:
        example: a batch to follow the channels with.
        refuse: the reason why a layer must be left as it is, or None.
    """

    name = "equalize"
    exact = True

    def __init__(self, example: Batch, refuse: Callable[[fx.Node], str | None] = nothing_against) -> None:
        self.example, self.refuse = example, refuse

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        classes = scale_classes(gm, self.example, self.refuse)
        refusals = {n: f"not equalized: {r}" for n, r in classes.refusals.items()}
        ranges = _Ranges(classes)
        scale = ranges.settle()
        if (scale.log().abs() < TOLERANCE).all():
            return PassResult(0, refusals)
        before = {p.node: output_range(p) for p in classes.producers}
        changed = apply_scale(classes, scale)
        remarks = {
            p.node: f"equalized: weight range per channel {before[p.node]} -> {output_range(p)}"
            for p in classes.producers
            if p.node in changed
        }
        return PassResult(len(changed), refusals, remarks)


def apply_scale(classes: ScaleClasses, scale: Tensor) -> set[fx.Node]:
    """Divide the producers of each class by its scale, and multiply its consumers. Returns the producers changed."""
    changed = set()
    for port in classes.producers:
        if (scale[port.slots] != 1).any():
            rescale(port.layer, port.row, outputs=1 / scale[port.slots])
            changed.add(port.node)
    for port in classes.consumers:
        if (scale[port.slots] != 1).any():
            rescale(port.layer, port.row, inputs=scale[port.slots])
    return changed


def output_range(port: Port) -> str:
    """The smallest and the largest weight range of the channels of a producer, as text."""
    weight: Any = port.layer.weight
    ranges = by_channels(port.layer, port.row).abs().amax((2, 3)) if port.row.weighted else weight.detach().abs()
    return f"{float(ranges.min()):.3g}..{float(ranges.max()):.3g}"


class _Ranges:
    """The weight ranges of all classes as functions of their scales."""

    def __init__(self, classes: ScaleClasses) -> None:
        self.classes = classes
        ports = [*classes.producers, *classes.consumers]
        weighted = {p.node: p for p in ports if p.row.weighted}
        # (groups, outputs, inputs): only the largest weight of each window counts.
        self.largest = {n: by_channels(p.layer, p.row).abs().amax(-1) for n, p in weighted.items()}
        self.gives = {p.node: p.slots for p in classes.producers}
        self.reads = {p.node: p.slots for p in classes.consumers}
        self.norms = [p for p in classes.producers if not p.row.weighted]

    def settle(self) -> Tensor:
        """The scale of every class; 1 if it must not change."""
        log_scale, last = torch.zeros(2, self.classes.count)
        for _ in range(STEPS):
            given, read = self._at(log_scale.exp())
            usable = self.classes.free & (given > 0) & (read > 0)
            step = torch.where(usable, 0.5 * (given.log() - read.log()), 0.0)
            if step.abs().max() < TOLERANCE:
                break
            # All move at once: without damping, a layer between two classes would oscillate.
            last = torch.where(step * last < 0, step / 2, step)
            log_scale += last
        return log_scale.exp()

    def _at(self, scale: Tensor) -> tuple[Tensor, Tensor]:
        """The largest weights that make and that read each class, with the scales applied."""
        given, read = torch.zeros_like(scale), torch.zeros_like(scale)
        for node, largest in self.largest.items():
            groups, outputs, inputs = largest.shape
            out = 1 / scale[self.gives[node]] if node in self.gives else torch.ones(groups * outputs)
            into = scale[self.reads[node]] if node in self.reads else torch.ones(groups * inputs)
            scaled = largest * out.reshape(groups, outputs, 1) * into.reshape(groups, 1, inputs)
            if node in self.gives:
                given.scatter_reduce_(0, self.gives[node], scaled.amax(2).flatten(), "amax")
            if node in self.reads:
                read.scatter_reduce_(0, self.reads[node], scaled.amax(1).flatten(), "amax")
        for port in self.norms:
            weight: Any = port.layer.weight
            given.scatter_reduce_(0, port.slots, weight.detach().abs() / scale[port.slots], "amax")
        return given, read
