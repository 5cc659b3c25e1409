"""Following channels through a graph: what mixes or hides them must pin them, and scales must settle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant import QuantConfig
from fxquant.passes.rewrites.equalize import TOLERANCE, Equalize
from tests.compiler.toys import Lambda, images, normalized
from tests.passes.random_graphs import uneven
from tests.passes.test_equalize import equalized, relative_error, unsettled

Forward = Callable[[Any, Tensor], Any]


pytestmark = pytest.mark.usefixtures("one_thread")


def across(pool: Callable[..., Tensor], size: int) -> Forward:
    """Pool over channels instead of positions."""

    def forward(m: Any, x: Tensor) -> Any:
        rows = m.a(x).relu().flatten(2).transpose(1, 2)
        return m.b(pool(rows, size).transpose(1, 2).unflatten(2, (8, 8)))

    return forward


def beside(other: Callable[[Tensor, Tensor], Tensor]) -> Forward:
    """A layer that could be scaled if ``other`` did not read the same."""

    def forward(m: Any, x: Tensor) -> Any:
        y = m.a(x)
        return m.b(y), other(y, x)

    return forward


def mean_of_channels(m: Any, x: Tensor) -> Any:
    return m.b(m.a(x).relu().mean(1, keepdim=True))


def sum_pool(m: Any, x: Tensor) -> Any:
    return m.b(F.avg_pool2d(m.a(x).relu(), 2, divisor_override=1))


OPS: list[Any] = [
    ("mean over positions", 5, 5, lambda m, x: m.b(m.a(x).relu().mean((2, 3), keepdim=True))),
    ("interpolate", 5, 5, lambda m, x: m.b(F.interpolate(m.a(x).relu(), scale_factor=2, mode="bilinear"))),
    ("pixel_shuffle", 8, 2, lambda m, x: m.b(F.pixel_shuffle(m.a(x).relu(), 2))),
    ("slice", 8, 3, lambda m, x: m.b(m.a(x).relu()[:, 1:7:2])),
    ("product", 8, 8, lambda m, x: m.b(m.a(x) * m.a(x).mean(1, keepdim=True))),
    ("sum with the input", 3, 3, beside(lambda y, x: y + x)),
    ("sum with a number", 8, 8, beside(lambda y, x: (y + 1.0).relu())),
    ("joined with the input", 8, 8, beside(lambda y, x: torch.cat([x, y], 1))),
    ("mean of 8 channels", 8, 1, mean_of_channels),
    ("mean of 7 channels", 7, 1, mean_of_channels),
    ("avg_pool of 3 channels", 8, 2, across(F.avg_pool1d, 3)),
    ("max_pool of 2 channels", 8, 4, across(F.max_pool1d, 2)),
    ("sum of a window", 8, 8, sum_pool),
]


@pytest.mark.parametrize(("name", "given", "read", "forward"), OPS)
def test_one_op_between_two_layers(name: str, given: int, read: int, forward: Forward) -> None:
    model, x = uneven(Lambda(forward, a=nn.Conv2d(3, given, 1), b=nn.Conv2d(read, 4, 1))), images(2)
    gm, _ = equalized(model, x)
    assert relative_error(gm(x), model(x)) < 1e-4


def test_the_mean_of_channels_compiled_with_one_scale_per_weight() -> None:
    model = uneven(Lambda(mean_of_channels, a=nn.Conv2d(3, 7, 1), b=nn.Conv2d(1, 4, 1)))
    x = images()
    prepared = fxquant.prepare(model, backend="reference", config=QuantConfig(weight="per_tensor_symmetric"))
    assert relative_error(prepared(x), model(x)) < 1e-4


def transposed_as_attribute(m: Any, x: Tensor) -> Any:
    y = m.a(x).relu()
    return m.b(y), y.mT


def tied_transposed(m: Any, x: Tensor) -> Any:
    return F.linear(m.b(m.a(x).relu()).relu(), m.b.weight.t())


def tied_as_it_is(m: Any, x: Tensor) -> Any:
    y = m.b(m.a(x).relu())
    return y, torch.matmul(x, m.b.weight[:3])


@pytest.mark.parametrize(
    "forward",
    [
        transposed_as_attribute,
        tied_transposed,
        tied_as_it_is,
    ],
)
def test_other_readers_of_a_value_or_a_weight(forward: Forward) -> None:
    model, x = uneven(Lambda(forward, a=nn.Linear(3, 6), b=nn.Linear(6, 6))), torch.randn(4, 3)
    gm, _ = equalized(model, x)
    assert relative_error(gm(x), model(x)) < 1e-4


def residual(m: Any, x: Tensor) -> Any:
    y = m.stem(x)
    return m.head(y + m.second(m.first(y.relu()).relu()))


@pytest.mark.parametrize(
    "share",
    [1.0, 1e-4],
)
def test_ranges_settle_around_a_residual(share: float) -> None:
    depthwise = {n: nn.Conv2d(6, 6, 3, padding=1, groups=6) for n in ("first", "second")}
    model: Any = uneven(Lambda(residual, stem=nn.Conv2d(3, 6, 1), head=nn.Conv2d(6, 4, 1), **depthwise), 0.5)
    with torch.no_grad():
        model.stem.weight *= share
        model.head.weight *= share
    x = images(2)
    gm, _ = equalized(model, x)
    assert relative_error(gm(x), model(x)) < 1e-4
    assert max(unsettled(gm, x).values()) < TOLERANCE * 1.01


def test_a_second_run_changes_nothing_even_where_ranges_start_far_apart() -> None:
    layers = [m for i in range(6) for m in (nn.Conv2d(3 if i == 0 else 6, 6, 1), nn.ReLU())]
    model, x = uneven(nn.Sequential(*layers), 3), images(2)
    gm = normalized(model)
    assert Equalize(((x,), {}))(gm).rewrites == 5
    assert max(unsettled(gm, x).values()) < TOLERANCE * 1.01
    assert Equalize(((x,), {}))(gm).rewrites == 0
