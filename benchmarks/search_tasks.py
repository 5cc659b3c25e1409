"""Tasks of `benchmarks.search`: networks on scikit-learn's digits, and other methods of search."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.compiler.cli.demo import Digits, InvertedResidual, accuracy, conv_bn
from fxquant.compiler.search.space import Mix, Space
from tests.models import settled

Evaluate = Callable[[nn.Module], float]


def calibration(digits: Digits) -> list[Tensor]:
    """A batch of one image, by which latency is measured, and the others in batches of eleven."""
    images = digits.calibration[0]
    return [images[:1], *images[1:].split(11)]


def evaluation(digits: Digits) -> Evaluate:
    """The share of right predictions on the test images."""

    def evaluate(module: nn.Module) -> float:
        images, labels = digits.test
        parts = zip(images.split(71), labels.split(71), strict=True)
        return sum(accuracy(module, x, y) * len(y) for x, y in parts) / len(labels) / 100

    return evaluate


def pictures(digits: Digits, size: int = 64) -> Digits:
    """The digits with three channels and ``size`` pixels a side, for networks made for photographs."""

    def enlarged(split: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return F.interpolate(split[0], size=(size, size), mode="bilinear").repeat(1, 3, 1, 1), split[1]

    return Digits(enlarged(digits.train), enlarged(digits.calibration), enlarged(digits.test))


@torch.no_grad()
def on_digits(name: str, digits: Digits) -> nn.Module:
    """A CNN of the zoo with the digits' normalization statistics, and a last layer fitted to them by least squares."""
    model = settled(name)
    images, labels = digits.train
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None  # a cumulative average
    for part in images[:600].split(50):
        model(part)
    model.eval()
    head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    features: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda module, args: features.append(args[0]))
    for part in images.split(50):
        model(part)
    hook.remove()
    x = F.pad(torch.cat(features), (0, 1), value=1.0).double()
    ridge = 1e-3 * x.square().mean() * len(x) * torch.eye(x.shape[1], dtype=torch.double)
    weight = torch.linalg.solve(x.T @ x + ridge, x.T @ (F.one_hot(labels, 10).double() * 2 - 1)).float()
    head.weight.zero_()
    head.bias.fill_(-10.0)  # the classes that there are not
    head.weight[:10], head.bias[:10] = weight[:-1].T, weight[-1]
    return model


def deep_network() -> nn.Sequential:
    """Thirty layers with weights, without residual connections: ``(N, 1, 32, 32)`` images into ten digits."""
    channels = (24, 32, 40, 48, 56, 64, 72, 80, 88, 96)
    blocks = [
        InvertedResidual(inputs, outputs, 2 if outputs in (32, 64) else 1, nn.ReLU)
        for inputs, outputs in itertools.pairwise(channels)
    ]
    stem, end = (*conv_bn(1, 24, 3, 2), nn.ReLU()), (*conv_bn(96, 256, 1), nn.ReLU())
    return nn.Sequential(*stem, *blocks, *end, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))


def small_network() -> nn.Sequential:
    """Six layers with weights: ``(N, 1, 32, 32)`` images into ten digits."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((1, 32, 2), (32, 64, 2), (64, 64, 1), (64, 96, 2), (96, 96, 1)):
        layers += [*conv_bn(inputs, outputs, 3, stride), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10))


def greedy(space: Space, evaluate: Callable[[Mix], float], floor: float, alone: bool) -> tuple[Mix, int]:
    """Revert one op after the other, the worst first, until the floor is reached; and the number of evaluations.

    The order comes from one evaluation an op: of the model with it alone reverted (as NNCF ranks), or ``alone`` in int8
    (as AIMET does).
    """
    ops, everything = space.weighted, frozenset(space.costs.fp32)
    only = {op: frozenset([op]) if alone else everything - {op} for op in ops}
    rank = {op: evaluate(space.with_int8(frozenset(), list(mix & set(ops)), 0.0)) for op, mix in only.items()}
    left, evaluations = everything, len(ops) + 1
    if evaluate(left) >= floor:
        return left, evaluations
    for op in sorted(ops, key=lambda op: rank[op], reverse=not alone):
        left = space.with_int8(frozenset(), [o for o in ops if o in left and o != op], 0.0)
        evaluations += 1
        if evaluate(left) >= floor:
            break
    return left, evaluations


def random_mixes(space: Space, count: int, seed: int = 0) -> Iterator[Mix]:
    """All mixes of the ops with weights, if they are no more than ``count``, else as many at random."""
    ops, draw = space.weighted, random.Random(seed)
    if 2 ** len(ops) <= count:
        chosen = [[op for i, op in enumerate(ops) if number >> i & 1] for number in range(2 ** len(ops))]
    else:
        chosen = []
        for _ in range(count):
            share = draw.uniform(0.4, 1.0)
            chosen.append([op for op in ops if draw.random() < share])
    for ops_in_int8 in chosen:
        yield space.with_int8(frozenset(), ops_in_int8, 0.0)
