"""All weight and activation schemes, observers, fewer bits: close to fp32."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantConfig
from fxquant.compiler.core.config import ACTIVATION_SCHEMES, OBSERVERS, WEIGHT_SCHEMES

from .support import compiled, oracle, output_step, seeded, sqnr

MODELS = {
    "conv2d": (lambda: nn.Sequential(nn.Conv2d(8, 16, 3, padding=1)), (8, 10, 10)),
    "linear": (lambda: nn.Sequential(nn.Linear(48, 24)), (48,)),
}


# Weights and observers know nothing of each other: all weights with one observer, all observers with one weight.
CHOICES = [
    *itertools.product(WEIGHT_SCHEMES, ACTIVATION_SCHEMES, ("minmax",)),
    *itertools.product(WEIGHT_SCHEMES[:1], ACTIVATION_SCHEMES, OBSERVERS),
]


def data_of(shape: tuple[int, ...]) -> list[tuple[Tensor, ...]]:
    return [seeded(lambda: (torch.randn(8, *shape),), s) for s in range(1, 5)]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("weight", "activation", "observer"), CHOICES)
def test_close_to_fp32(model: str, weight: Any, activation: Any, observer: Any) -> None:
    build, shape = MODELS[model]
    layer, data = seeded(build).eval(), data_of(shape)
    q = compiled(layer, data, config=QuantConfig(weight=weight, activation=activation, observer=observer))
    assert all(row.precision == "int8" for row in q.report.rows)
    x = torch.cat([batch[0] for batch in data])
    with torch.no_grad():
        expected = layer(x)
    # A normal tensor of n values spans about 4 sigma to each side: step 8/255 sigma, noise step^2/12, 41 dB for
    # each of input and output; uniform weights at 127 levels a side: 47 dB; half of that (-6 dB) for affine
    # weights without VNNI. In all about 37. The averaged and the clipped ranges lose some at the tails, which
    # entropy clips down to 0.3 of the range on few values.
    bound = {
        "measured": 34.0,
        "histogram": 34.0,
        "minmax": 34.0,
        "percentile": 32.0,
        "moving_average": 28.0,
        "entropy": 20.0,
    }
    assert sqnr(expected, q(x)) > bound[observer]
    # ... and whatever the scheme, the kernels compute what the frozen graph says.
    theirs = oracle(q, x)
    step = output_step(q) or 1e-5 * float(theirs.abs().max())
    assert (q(x) - theirs).abs().max() <= 1.01 * step


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("bits", "bound"), ((4, 17.0), (6, 29.0), (2, 0.0)))
def test_weight_bits(model: str, bits: int, bound: float) -> None:
    # Uniform weights at 2^(bits-1) - 1 levels a side: noise of a twelfth of a step squared against a third of
    # the range squared: 20 log10(2 * 7) = 23 dB at 4 bits, 36 at 6, 0 dB and more at 2 bits; less a few for tails.
    build, shape = MODELS[model]
    layer, data = seeded(build).eval(), data_of(shape)
    q = compiled(layer, data, config=QuantConfig(weight_bits=bits))
    with torch.no_grad():
        assert sqnr(layer(*data[0]), q(*data[0])) > bound
    integers = next(b for name, b in q.graph.named_buffers() if name.endswith("_weight"))
    assert integers.abs().max() <= 2 ** (bits - 1) - 1
