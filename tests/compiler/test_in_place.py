"""In-place ops whose memory is read under several names: pure ops give the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant import CaptureError
from fxquant.compiler.capture.capture import capture
from fxquant.compiler.capture.normalize import normalize

from .toys import Lambda

Forward = Callable[[Any, Tensor], Any]


def view_then_add(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    z = y.view(y.shape[0], -1)
    y += 1
    return z * 2, y


def view_of_what_was_changed(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    z = y.view(y.shape[0], -1)
    z.mul_(2).clamp_(-1, 1)
    return m.d(y)


def two_names(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    a = y
    y.mul_(2.0)
    y.clamp_(-1, 1)
    return a + m.d(y)


def slice_of(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    z = y[:, :4]
    z.mul_(3.0)
    return m.d(y), z


def item_of_item(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    z = y[:, 1:][:, :, 2]
    z += 5
    return y


def transposed(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    z = y.transpose(1, 2)
    z.add_(1)
    return m.d(y), z


def narrowed(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    z = y.narrow(1, 2, 3)
    other = y.narrow(1, 3, 3)
    z.add_(1)
    return y, other


def selected(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    z = y.select(1, 2)
    F.relu_(z)
    return y


def values_of_max(m: Any, x: Tensor) -> Any:
    y = m.c(x).max(1).values
    y.add_(0.25)
    return y


def through_data(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    y.data.add_(0.25)
    return y


def through_real(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    y.real.mul_(2)
    return m.d(y)


PURE = (
    view_then_add, view_of_what_was_changed, two_names, slice_of, item_of_item, transposed, narrowed, selected,
    values_of_max, through_data, through_real,
)  # fmt: skip


def model(forward: Forward) -> nn.Module:
    torch.manual_seed(0)
    return Lambda(forward, c=nn.Conv2d(3, 8, 3), d=nn.Conv2d(8, 8, 1)).eval()


@pytest.mark.parametrize("forward", PURE)
def test_the_graph_computes_the_same(forward: Forward) -> None:
    net, x = model(forward), torch.randn(2, 3, 9, 9)
    gm = capture(net)
    normalize(gm)
    expected, given = net(x), gm(x)
    for a, b in zip(*(v if isinstance(v, tuple) else (v,) for v in (expected, given)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("forward", PURE)
def test_compiled(forward: Forward) -> None:
    net, x = model(forward), torch.randn(2, 3, 9, 9)
    q = fxquant.compile(net, calibration=[x])
    expected, given = net(x), q(x)
    for a, b in zip(*(v if isinstance(v, tuple) else (v,) for v in (expected, given)), strict=True):
        assert (a - b).square().mean() < 1e-3 * a.square().mean()


def reshaped(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    z = y.transpose(1, 2).reshape(2, -1)  # a copy, as the strides do not allow a view
    y += 1
    return z, y


def part_of_a_chunk(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    a, _ = y.chunk(2, 1)
    a += 1
    return y


@pytest.mark.parametrize("forward", (reshaped, part_of_a_chunk))
def test_what_is_not_certain_is_refused(forward: Forward) -> None:
    with pytest.raises(CaptureError, match="shares, which is read later"):
        fxquant.compile(model(forward), calibration=[torch.randn(2, 3, 9, 9)])


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
