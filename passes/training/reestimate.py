r"""New running statistics for batch normalizations, which fit the rounded weights.

In training, running statistics lag behind the weights; and with few bits, a new running variance rounds the folded
weight :math:`g W` to other integers, whose output has other statistics. So the statistics of each normalization are
computed again, in the order in which they run, with all layers before as they are in eval mode. The weight depends on
the variance, which is therefore found by trials; no weight depends on the mean. Statistics from a few batches after
training are known as precise batch normalization (Wu and Johnson 2021, arXiv:2105.07576, section 3).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...compiler.execution.sample import Batch
from ...compiler.execution.stepper import Stepper
from .simulated_layer import SimulatedLayer

ROUNDS = 4  # variances that are tried
NEAR = 1e-3  # mean distance of the logarithms of two variances that are as good as equal
STEP = 100.0  # a variance falls at most by this factor in a round


@torch.no_grad()
def reestimate(gm: fx.GraphModule, batches: Sequence[Batch], norms: Collection[nn.Module]) -> int:
    """Set the running statistics of ``norms``, called by ``gm``, which is in eval mode. Returns how many are set.

    Those of a normalization that is called several times stay as they are.
    """
    modules = dict(gm.named_modules(remove_duplicate=False))
    calls: dict[fx.Node, tuple[nn.Module, Any]] = {}
    for node in gm.graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        norm = module.norm if isinstance(module, SimulatedLayer) else module
        if module is not None and isinstance(norm, _BatchNorm):
            calls[node] = module, norm
    count = Counter(norm for _, norm in calls.values())
    settled = [
        node
        for node, (_, norm) in calls.items()
        if norm in norms
        and norm.running_var is not None
        and count[norm] == 1
        and len(node.args) == 1
        and not node.kwargs
    ]
    before = [(t, t.clone()) for n in settled for t in (calls[n][1].running_mean, calls[n][1].running_var)]
    stepper = Stepper(gm, batches)
    try:
        for node in settled:
            _settle(*calls[node], [args[0] for args in stepper.before(node)])
    except BaseException:
        for tensor, old in before:
            tensor.copy_(old)
        raise
    return len(settled)


def _settle(module: nn.Module, norm: Any, inputs: Sequence[Tensor]) -> None:
    """Take the variance that is nearest to that of the output, of some that lead towards it, and the mean with it."""
    best, least = (norm.running_mean.clone(), norm.running_var.clone()), math.inf
    for _ in range(ROUNDS):
        mean, actual = _moments(module, norm, inputs)
        ratio = (actual + norm.eps) / (norm.running_var + norm.eps)
        distance = float(ratio.log().abs().mean())
        if distance < least:
            best, least = (mean, norm.running_var.clone()), distance
        if distance < NEAR:
            break
        # A channel whose weights are all rounded to zero has no variance: its gain must not grow.
        norm.running_var *= torch.where(actual > 0, ratio.clamp(min=1 / STEP), 1.0)
    norm.running_mean.copy_(best[0])
    norm.running_var.copy_(best[1])


def _moments(module: nn.Module, norm: Any, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel of what a normalization is given."""
    near = norm.running_mean.clone()  # squares of differences to it lose no digits
    count, total, squares = 0, torch.zeros_like(near), torch.zeros_like(near)
    for x in inputs:
        given = module.before_norm(x) if isinstance(module, SimulatedLayer) else x
        channels = given.flatten(2) if given.dim() > 2 else given.reshape(-1, given.shape[-1], 1)
        off = channels - near[:, None]
        count += channels.numel() // len(near)
        total += off.sum((0, 2))
        squares += off.square_().sum((0, 2))
    mean = total / count
    return near + mean, (squares - total * mean).clamp_min(0) / max(count - 1, 1)
