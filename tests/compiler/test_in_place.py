"""In-place ops whose memory is read under several names: pure ops give the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant import CaptureError
from fxquant.compiler.capture.capture import capture
from fxquant.compiler.capture.normalize import normalize

from .in_place_cases import EXACT_ONLY, PURE, REFUSED, Forward
from .toys import Lambda


def model(forward: Forward) -> nn.Module:
    torch.manual_seed(0)
    return Lambda(forward, c=nn.Conv2d(3, 8, 3), d=nn.Conv2d(8, 8, 1), mask=torch.arange(8) % 3 > 0).eval()


@pytest.mark.parametrize("forward", PURE + EXACT_ONLY)
def test_the_graph_computes_the_same(forward: Forward) -> None:
    net, x = model(forward), torch.randn(2, 3, 9, 9)
    gm = capture(net)
    normalize(gm)
    with torch.no_grad():  # autograd forbids some of these
        expected, given = net(x), gm(x)
    for a, b in zip(*(v if isinstance(v, tuple) else (v,) for v in (expected, given)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("forward", PURE)
def test_compiled(forward: Forward) -> None:
    net, x = model(forward), torch.randn(2, 3, 9, 9)
    q = fxquant.compile(net, calibration=[x])
    with torch.no_grad():
        expected, given = net(x), q(x)
    for a, b in zip(*(v if isinstance(v, tuple) else (v,) for v in (expected, given)), strict=True):
        assert (a - b).square().mean() < 1e-3 * a.square().mean()


@pytest.mark.parametrize("forward", REFUSED)
def test_what_is_not_certain_is_refused(forward: Forward) -> None:
    with pytest.raises(CaptureError, match="shares, which is read later"):
        normalize(capture(model(forward)))


class Functional(nn.Module):
    """Functions over parameters, one of them with a name that a layer made of a function would have."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(8, 3, 3, 3)), nn.Parameter(torch.randn(8, 8, 1, 1))
        self.conv2d_module = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.first), inplace=True)
        out: Tensor = self.conv2d_module(F.relu(F.conv2d(x, self.second), inplace=True))
        return out


@pytest.mark.parametrize("scheme", ("static", "dynamic", "qat"))
def test_in_place_functions_behind_functional_layers(scheme: Any) -> None:
    net, x = Functional().eval(), torch.randn(2, 3, 9, 9)
    options: dict[str, Any] = {} if scheme == "dynamic" else {"calibration": [x]}
    if scheme == "qat":
        options["train"] = lambda q: None
    q = fxquant.compile(net, scheme, **options)
    assert (q(x) - net(x)).square().mean() < 1e-3 * net(x).square().mean()
