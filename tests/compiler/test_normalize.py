"""Every spelling of an op becomes one canonical call."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxquant
from fxquant.compiler.capture.normalize import normalize

from .toys import Lambda, compiled, computed, images, normalized, sqnr

Function = Callable[[nn.Module, Tensor], Any]


def added(m: nn.Module, x: Tensor, how: Callable[[Tensor, Tensor], Any]) -> Any:
    return how(x * 2, x)


SPELLINGS: dict[str, tuple[Callable[..., Any], list[nn.Module]]] = {
    "relu": (
        F.relu,
        [
            nn.Sequential(nn.ReLU()),
            nn.Sequential(nn.ReLU(inplace=True)),
            Lambda(lambda m, x: F.relu(x)),
            Lambda(lambda m, x: F.relu(input=x)),
            Lambda(lambda m, x: torch.relu(x)),
            Lambda(lambda m, x: x.relu()),
            Lambda(lambda m, x: torch.relu_(x.mul(1))),
            Lambda(lambda m, x: x.mul(1).relu_()),
            Lambda(lambda m, x: F.relu_(x.mul(1))),
        ],
    ),
    "add": (
        torch.add,
        [
            Lambda(lambda m, x: added(m, x, operator.add)),
            Lambda(lambda m, x: added(m, x, operator.iadd)),
            Lambda(lambda m, x: added(m, x, torch.add)),
            Lambda(lambda m, x: added(m, x, lambda a, b: a.add(b))),
            Lambda(lambda m, x: added(m, x, lambda a, b: a.add_(b))),
            Lambda(lambda m, x: added(m, x, lambda a, b: torch.add(a, other=b))),
            Lambda(lambda m, x: added(m, x, lambda a, b: torch.add(input=a, other=b))),
        ],
    ),
    "flatten": (
        torch.flatten,
        [
            nn.Sequential(nn.Flatten()),
            Lambda(lambda m, x: torch.flatten(x, 1)),
            Lambda(lambda m, x: torch.flatten(x, start_dim=1)),
            Lambda(lambda m, x: x.flatten(1)),
            Lambda(lambda m, x: x.flatten(start_dim=1)),
        ],
    ),
    "view": (
        torch.reshape,
        [
            Lambda(lambda m, x: x.view(2, -1)),
            Lambda(lambda m, x: x.view((2, -1))),
            Lambda(lambda m, x: x.view([2, -1])),
            Lambda(lambda m, x: x.reshape(2, -1)),
            Lambda(lambda m, x: x.reshape((2, -1))),
            Lambda(lambda m, x: torch.reshape(x, (2, -1))),
        ],
    ),
    "view with a size": (
        torch.reshape,
        [
            Lambda(lambda m, x: x.view(x.size(0), -1)),
            Lambda(lambda m, x: x.reshape(x.shape[0], -1)),
            Lambda(lambda m, x: torch.reshape(x, (x.size(0), -1))),
        ],
    ),
    "max_pool": (
        F.max_pool2d,
        [
            nn.Sequential(nn.MaxPool2d(2)),
            Lambda(lambda m, x: F.max_pool2d(x, 2)),
            Lambda(lambda m, x: F.max_pool2d(x, kernel_size=(2, 2), stride=2)),
            Lambda(lambda m, x: torch.max_pool2d(x, 2)),
        ],
    ),
}


CASES = [
    pytest.param(canonical, model, id=f"{name}-{i}")
    for name, (canonical, models) in SPELLINGS.items()
    for i, model in enumerate(models)
]


@pytest.mark.parametrize(("canonical", "model"), CASES)
def test_every_spelling_becomes_the_canonical_call(canonical: Callable[..., Any], model: nn.Module) -> None:
    x = images()
    gm = normalized(model)
    last = computed(gm)[-1]
    assert (last.op, last.target) == ("call_function", canonical)
    assert all(isinstance(a, fx.Node) for a in last.args), "parameters stand in kwargs"
    assert "inplace" not in last.kwargs
    assert torch.equal(gm(x.clone()), model(x.clone()))


def test_spellings_with_equal_parameters_are_equal_nodes() -> None:
    flattens = [computed(normalized(m))[-1].kwargs for m in SPELLINGS["view"][1]]
    assert all(kwargs == {"shape": (2, -1)} for kwargs in flattens)


@pytest.mark.parametrize("name", SPELLINGS)
def test_normalizing_again_changes_nothing(name: str) -> None:
    for model in SPELLINGS[name][1]:
        gm = normalized(model)
        assert normalize(gm) == 0


def relu_method(m: nn.Module, x: Tensor) -> Tensor:
    a = x * 1
    b = a.relu_()
    return a + b


def relu_keyword(m: nn.Module, x: Tensor) -> Tensor:
    a = x * 1
    b = F.relu(a, inplace=True)
    return a + b


def relu_positional(m: nn.Module, x: Tensor) -> Tensor:
    a = x * 1
    b = F.relu(a, True)
    return a + b


def hardtanh_positional(m: nn.Module, x: Tensor) -> Tensor:
    a = x * 1
    b = F.hardtanh(a, -0.5, 0.5, True)
    return a + b


def augmented(m: nn.Module, x: Tensor) -> Tensor:
    a = x * 1
    b = a
    b += 1
    return a + b


def earlier_reader(m: nn.Module, x: Tensor) -> Tensor:
    a = x * 1
    before = a + 1
    a.mul_(3)
    return a + before


def twice(m: nn.Module, x: Tensor) -> Tensor:
    a = x * 1
    a.add_(1)
    a.relu_()
    return a * 2


def of_a_view(m: nn.Module, x: Tensor) -> Tensor:
    a = x * 1
    a.view(-1).add_(1)
    return a


def through_a_view(m: nn.Module, x: Tensor) -> Tensor:
    a = x * 1
    flat = a.flatten(1)
    a.relu_()
    return flat + 1


def unknown_op(m: nn.Module, x: Tensor) -> Tensor:
    a = x * 1
    b = a.exp_()
    return a + b


@pytest.mark.parametrize(
    "function",
    [
        of_a_view,
        relu_method,
        relu_keyword,
        relu_positional,
        hardtanh_positional,
        earlier_reader,
        twice,
        unknown_op,
        augmented,
    ],
)
def test_in_place_ops_keep_what_is_read_later(function: Function) -> None:
    x = images()
    model = Lambda(function)
    assert torch.equal(normalized(model)(x.clone()), model(x.clone()))


def test_in_place_ops_on_what_may_be_a_view_are_refused() -> None:
    with pytest.raises(fxquant.CaptureError, match=r"shares, which is read later.*out of place"):
        normalized(Lambda(through_a_view))


def test_an_in_place_module_keeps_what_is_read_later() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        a = m.conv(x)
        b = m.act(a)
        return torch.add(a, b)

    model = Lambda(forward, conv=nn.Conv2d(3, 4, 1), act=nn.ReLU(inplace=True)).eval()
    x = images()
    assert torch.allclose(normalized(model)(x), model(x))
    q = compiled(model)
    assert sqnr(model(x), q(x)) > 25
