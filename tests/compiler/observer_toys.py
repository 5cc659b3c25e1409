"""Tensors to observe."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from fxquant.compiler.core.qparams import QParams
from fxquant.compiler.numerics.observer import Observer
from fxquant.compiler.numerics.observers import OBSERVER_CLASSES

MERGEABLE = ["histogram", "minmax", "percentile", "entropy"]


NAMES = list(OBSERVER_CLASSES)


values = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)


bounds = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)


SMALLEST_SCALE = 2.0**-116  # below it, every scale does


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Gaussian data of some shape, scale and offset, with a few arbitrary values among them."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    shape = draw(st.sampled_from([(40,), (4, 10), (2, 3, 5), (2, 3, 4, 4)]))
    x = torch.randn(shape, generator=generator) * 10.0 ** draw(st.integers(-6, 6)) + draw(values)
    extra = torch.tensor(draw(st.lists(values, max_size=5)))
    x.view(-1)[: len(extra)] = extra
    return x


def observed(name: str, *data: Tensor, symmetric: bool = False) -> Observer:
    observer = OBSERVER_CLASSES[name]("value", symmetric)
    for x in data:
        observer(x)
    return observer


def squared_error(x: Tensor, known: QParams) -> float:
    steps = (x.double() / known.scale).round() + known.zero_point
    back = (steps.clamp(known.qmin, known.qmax) - known.zero_point) * known.scale
    return float((back - x.double()).square().sum())
