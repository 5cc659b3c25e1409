"""What must run as torch runs it: hooks, and calls with computed operands or options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant.compiler.numerics.metrics import sqnr

HOOKED: dict[str, nn.Module] = {
    "conv": nn.Conv2d(4, 4, 3, padding=1),
    "transposed conv": nn.ConvTranspose2d(4, 4, 2, 2),
    "batch_norm": nn.BatchNorm2d(4),
    "layer_norm": nn.LayerNorm(8),
    "linear": nn.Linear(8, 8),
    "relu": nn.ReLU(),
    "max_pool": nn.MaxPool2d(2),
    "softmax": nn.Softmax(-1),
}


@pytest.mark.parametrize("kind", ["after", "before"])
@pytest.mark.parametrize("name", HOOKED)
@torch.no_grad()
def test_hooks_of_fp32_layers_run(name: str, kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), HOOKED[name], nn.ReLU()).eval()
    layer, x = model[1], torch.randn(2, 3, 8, 8)
    if kind == "after":
        handle = layer.register_forward_hook(lambda module, given, result: result * 3 + 1)
    else:
        handle = layer.register_forward_pre_hook(lambda module, given: (given[0] * 3 + 1,))
    with handle:
        q = fxquant.compile(model, calibration=[x], backend="llvm")
        assert sqnr([model(x)], [q(x)]) > 25


class Computed(nn.Module):
    """Calls of functions whose bias is computed from the input, so that no layer can be made of them."""

    def __init__(self, call: Any, *shape: int) -> None:
        super().__init__()
        self.call, self.weight = call, nn.Parameter(torch.randn(shape) * 0.3)
        self.first = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.call(x, self.weight, x.amax((2, 3))[0] * 4)


CALLS = {
    "conv, stride and padding": (lambda x, w, b: F.conv2d(x, w, b, 2, 1), (4, 4, 3, 3)),
    "conv, bias by name": (lambda x, w, b: F.conv2d(x, w, bias=b, stride=2), (4, 4, 3, 3)),
    "transposed conv": (lambda x, w, b: F.conv_transpose2d(x, w, b, 2), (4, 4, 2, 2)),
    "linear": (lambda x, w, b: F.linear(x.transpose(1, 3), w, b), (4, 4)),
    "linear, bias by name": (lambda x, w, b: F.linear(x.transpose(1, 3), w, bias=b), (4, 4)),
}


@pytest.mark.parametrize("name", CALLS)
@torch.no_grad()
def test_functions_with_a_computed_bias(name: str) -> None:
    torch.manual_seed(0)
    call, shape = CALLS[name]
    model, x = Computed(call, *shape).eval(), torch.randn(2, 3, 8, 8)
    q = fxquant.compile(model, calibration=[x], backend="llvm")
    assert sqnr([model(x)], [q(x)]) > 25
