"""Max pools that return indices, in models that torch.fx or torch.export captures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant.compiler.numerics.metrics import sqnr

from .toys import Lambda


def branching(m: Any, x: Tensor) -> Tensor:
    y = m.pool(m.first(x))
    return m.last(y[0] if isinstance(y, tuple) else y)


def unpooled(m: Any, x: Tensor) -> Tensor:
    y, places = m.pool(m.first(x))
    return m.last(F.max_unpool2d(y, places, [2, 2]) if isinstance(places, Tensor) and y.shape[2] > 2 else y)


def function(m: Any, x: Tensor) -> Tensor:
    y, _ = F.max_pool2d_with_indices(m.first(x), [2, 2])
    return m.last(y)


def first_of_a_function(m: Any, x: Tensor) -> Tensor:
    return m.last(F.max_pool2d_with_indices(m.first(x), [2, 2])[0])


@pytest.mark.parametrize("forward", [branching, unpooled, function, first_of_a_function])
@pytest.mark.parametrize("backend", ["llvm", "x86", "reference"])
def test_only_the_values_are_read_on(forward: Callable[..., Tensor], backend: Any) -> None:
    torch.manual_seed(0)
    pool = nn.MaxPool2d(2, return_indices=True)
    model = Lambda(forward, first=nn.Conv2d(3, 4, 1), last=nn.Conv2d(4, 2, 1), pool=pool).eval()
    x = torch.randn(4, 3, 8, 8)
    q = fxquant.compile(model, calibration=[x], backend=backend)
    with torch.no_grad():
        least = 10 if forward is unpooled else 25  # where rounded values tie, another place is the largest
        assert q(x).shape == model(x).shape and sqnr([model(x)], [q(x)]) > least
