"""Islands whose code and modules change each other: hooks, attributes, states, inputs changed in place."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant.compiler.numerics.metrics import sqnr

from .dynamic_toys import seeded

WIDTH = 16


def rows(count: int = 64) -> Tensor:
    return torch.randn(count, WIDTH)


class Calls(nn.Module):
    """A forward from a function, with a branch on values, over a child ``c`` and an output layer ``o``."""

    def __init__(self, child: nn.Module, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.c, self.o, self.function = child, nn.Linear(WIDTH, 4), function

    def forward(self, x: Tensor) -> Any:
        if x.sum() > 1e9:
            return x
        return self.o(self.function(self, x))


class Child(nn.Module):
    """A layer, and what a function makes of it."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **state: Any) -> None:
        super().__init__()
        self.l, self.function = nn.Linear(WIDTH, WIDTH), function
        self.register_buffer("k", torch.ones(1))
        self.__dict__.update(state)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        return self.function(self, x) if mask is None else self.function(self, x * mask)


def call(m: Any, x: Tensor) -> Any:
    return m.c(x)


def checked(model: nn.Module, least: float = 25) -> fxquant.QuantizedModule:
    """Compile, and compare several calls in a row, of copies too."""
    torch.manual_seed(1)
    q = fxquant.compile(model, calibration=[rows() for _ in range(6)])
    copied, expected = copy.deepcopy(q), copy.deepcopy(model)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", fxquant.FallbackWarning)
        for _ in range(5):
            x = rows()
            wanted = expected(x.clone())
            assert sqnr([wanted], [q(x.clone())]) > least and sqnr([wanted], [copied(x.clone())]) > least
    return q


@pytest.mark.parametrize("child", [lambda: nn.Linear(WIDTH, WIDTH), lambda: Child(lambda m, x: m.l(x))])
def test_hooks_of_a_called_module_run_once(child: Callable[[], nn.Module]) -> None:
    model = seeded(lambda: Calls(child(), call))
    model.get_submodule("c").register_forward_hook(lambda module, given, result: result * 2)
    model.get_submodule("c").register_forward_pre_hook(lambda module, given: (given[0] * 3,))
    checked(model)


def counted(m: Any, x: Tensor) -> Any:
    m.n = m.n + 1
    return m.l(x) * m.n


def frame_difference(m: Any, x: Tensor) -> Any:
    before, m.n = m.n, x
    return m.l(x - before)


def key_frame(m: Any, x: Tensor) -> Any:
    m.n += 1
    if m.n % 4 == 1:
        m.key = m.l(x)
    return m.key + x


def first_mean(m: Any, x: Tensor) -> Any:
    if m.n is None:
        m.n = x.mean(0)
    return m.l(x - m.n)


def every_third(m: Any, x: Tensor) -> Any:
    m.n += 1
    return m.l(x) * (2 if m.n % 3 else 1)


STATES = [(counted, 0), (frame_difference, torch.zeros(())), (key_frame, 0), (first_mean, None), (every_third, 0)]


@pytest.mark.parametrize(("function", "n"), STATES)
@pytest.mark.parametrize("place", ["alone", "in a chain", "under a branch"])
def test_a_state_begins_as_in_the_model(function: Callable[[Any, Tensor], Any], n: Any, place: str) -> None:
    def build() -> nn.Module:
        child = Child(function, n=n)
        if place == "alone":
            return child
        if place == "in a chain":
            return nn.Sequential(nn.Linear(WIDTH, WIDTH), child, nn.Linear(WIDTH, 4))
        return Calls(child, call)

    q = checked(seeded(build), least=15)
    assert any("changes" in reason for reason in q.report.islands.values())
    assert q.report.quantized_share == 1


def test_a_state_is_where_the_user_resets_it() -> None:
    model = seeded(lambda: Calls(Child(counted, n=0), call))
    q, x = fxquant.compile(model, calibration=[rows(), rows()]), rows()
    first = q(x)
    assert not torch.equal(q(x), first)
    q.module.c.n = 0  # type: ignore[union-attr]
    assert torch.equal(q(x), first)


def set_number(m: Any, x: Tensor) -> Any:
    m.c.n = float(x.abs().max())
    return m.c(x)


def set_mask(m: Any, x: Tensor) -> Any:
    m.c.n = (x > 0).float()
    return m.c(x)


def write_buffer(m: Any, x: Tensor) -> Any:
    m.c.k.copy_(x.abs().max())
    return m.c(x) * m.c.k


def read_afterwards(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    return y + m.c.n


def scaled(m: Any, x: Tensor) -> Any:
    return m.l(x) * m.n * m.k


def shown(m: Any, x: Tensor) -> Any:
    y = m.l(x)
    m.n = y.mean()
    return y


@pytest.mark.parametrize(
    ("parent", "child"),
    [(set_number, scaled), (set_mask, scaled), (write_buffer, scaled), (read_afterwards, shown)],
)
def test_code_that_talks_to_a_module_by_attributes(parent: Any, child: Any) -> None:
    checked(seeded(lambda: Calls(Child(child, n=1.0), parent)))


def test_a_module_that_changes_its_input() -> None:
    def add(m: Any, x: Tensor) -> Any:
        x += m.l(x)
        return x

    def parent(m: Any, x: Tensor) -> Any:
        y = x * 1
        m.c(y)
        return y

    q = checked(seeded(lambda: Calls(Child(add), parent)))
    assert q.report.islands["c"] == "it changes its input"


def test_calls_with_and_without_an_optional_input() -> None:
    model = seeded(lambda: Calls(Child(lambda m, x: m.l(x)), lambda m, x: m.c(x) + m.c(x, mask=(x > 0).float())))
    q, x = fxquant.compile(model, calibration=[rows(), rows()]), rows()
    with torch.no_grad(), pytest.warns(fxquant.FallbackWarning, match="'c' runs in fp32 in such calls"):
        assert sqnr([model(x)], [q(x)]) > 25


def test_calls_without_rows() -> None:
    def parent(m: Any, x: Tensor) -> Any:
        some = x.sum(1) > 99
        y = x * 1
        y[some] = m.c(x[some])
        return y + m.c(x)

    checked(seeded(lambda: Calls(Child(lambda m, x: m.l(x)), parent)))


def test_all_batches_that_were_asked_for_are_seen() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 1e9 else -x

    model = seeded(lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), Branch(), nn.Linear(WIDTH, 4)))
    batches = [rows() for _ in range(34)] + [rows() * 20 for _ in range(2)]
    q = fxquant.compile(model, calibration=batches, calibration_batches=36)
    with torch.no_grad():
        assert sqnr([model(batches[-1])], [q(batches[-1])]) > 25
