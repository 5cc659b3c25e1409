"""Absorbing what an activation never falls below: exact above it, refused where it would not be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxquant import QuantConfig
from fxquant.passes.base import PassResult
from fxquant.passes.rewrites.absorb_bias import AbsorbBias
from tests.compiler.toys import Lambda, compiled, images, normalized

Forward = Callable[[Any, Tensor], Any]


pytestmark = pytest.mark.usefixtures("one_thread")


def raised(function: Forward, **layers: nn.Module) -> Any:
    """A model whose layer ``a`` gives far more than 0 in all channels but the first."""
    model: Any = Lambda(function, **layers).eval()
    with torch.no_grad():
        model.a.weight *= 0.3
        model.a.bias.copy_(torch.linspace(0, 9, len(model.a.bias)))
    return model


def absorbed(model: nn.Module, *batches: Tensor, refuse: Any = lambda node: None) -> tuple[fx.GraphModule, PassResult]:
    gm = normalized(model)
    return gm, AbsorbBias([((x,), {}) for x in batches], refuse)(gm)


def chain(m: Any, x: Tensor) -> Any:
    return m.b(m.a(x).relu())


def both(m: Any, x: Tensor) -> Any:
    y = m.a(x).relu()
    return m.b(y) + m.c(y)


CASES: dict[str, tuple[Forward, dict[str, nn.Module], tuple[int, ...]]] = {
    "conv2d": (chain, {"a": nn.Conv2d(3, 6, 1), "b": nn.Conv2d(6, 4, 3)}, (8, 3, 6, 6)),
    "grouped": (chain, {"a": nn.Conv2d(3, 6, 1), "b": nn.Conv2d(6, 4, 3, groups=2)}, (8, 3, 6, 6)),
    "depthwise": (chain, {"a": nn.Conv2d(3, 6, 1), "b": nn.Conv2d(6, 6, 3, groups=6)}, (8, 3, 6, 6)),
    "without bias": (chain, {"a": nn.Conv2d(3, 6, 1), "b": nn.Conv2d(6, 4, 3, bias=False)}, (8, 3, 6, 6)),
    "conv1d": (chain, {"a": nn.Conv1d(3, 6, 1), "b": nn.Conv1d(6, 4, 3, stride=2)}, (8, 3, 9)),
    "from transposed": (chain, {"a": nn.ConvTranspose2d(3, 6, 1), "b": nn.Conv2d(6, 4, 1)}, (8, 3, 6, 6)),
    "linear": (chain, {"a": nn.Linear(3, 6), "b": nn.Linear(6, 4)}, (8, 3)),
    "sequence": (chain, {"a": nn.Linear(3, 6), "b": nn.Linear(6, 4)}, (8, 5, 3)),
    "two readers": (both, {"a": nn.Linear(3, 6), "b": nn.Linear(6, 4), "c": nn.Linear(6, 4)}, (8, 3)),
}


@pytest.mark.parametrize("case", CASES)
def test_exact_above_what_the_sample_showed_and_done_once(case: str) -> None:
    function, layers, shape = CASES[case]
    model, x = raised(function, **layers), torch.randn(shape)
    gm, result = absorbed(model, x[:4], x[4:])
    assert result.rewrites == 1 and [n.name for n in result.remarks] == ["a"] and not result.refusals
    # A layer is affine: between two inputs of the sample it gives nothing below the lesser of both.
    between = 0.3 * x + 0.7 * x.roll(1, 0)
    for batch in (x, between):
        torch.testing.assert_close(gm(batch), model(batch), rtol=1e-4, atol=1e-4)
    assert AbsorbBias([((x,), {})], lambda node: None)(gm).rewrites == 0


def test_the_constant_is_the_least_value_seen() -> None:
    model, x = raised(chain, a=nn.Linear(3, 6), b=nn.Linear(6, 4)), torch.randn(16, 3)
    gm, _ = absorbed(model, x[:8], x[8:])
    seen = model.a(x).relu().amin(0)
    floor = torch.where(seen > 0.05 * model.a(x).amax(0), seen, 0)
    assert int((floor > 1).sum()) >= 4
    torch.testing.assert_close(gm.get_submodule("a").bias, model.a.bias - floor)
    torch.testing.assert_close(gm.get_submodule("b").bias, model.b.bias + model.b.weight @ floor)
    assert torch.equal(gm.get_submodule("b").weight, model.b.weight)  # type: ignore[arg-type]
    below = -100 * x
    assert not torch.allclose(gm(below), model(below), atol=0.1)


def relu_reader(m: Any, x: Tensor) -> Any:
    y = m.a(x).relu()
    return m.b(y), torch.sigmoid(y)


def called_twice(m: Any, x: Tensor) -> Any:
    return m.b(m.a(m.a(x).relu()).relu())


def reader_twice(m: Any, x: Tensor) -> Any:
    return m.b(m.b(m.a(x).relu()))


def at_the_end(m: Any, x: Tensor) -> Any:
    return m.a(x).relu()


def square(kind: Any = nn.Conv2d, **options: Any) -> nn.Module:
    layer: nn.Module = kind(3, 3, 3 if options else 1, **options)
    return layer


REFUSED: list[tuple[Forward, nn.Module, str]] = [
    (chain, square(padding=1), "'b' pads with zeros"),
    (chain, square(padding=(0, 1)), "'b' pads with zeros"),
    (chain, square(padding="same"), "'b' pads with zeros"),
    (chain, square(nn.ConvTranspose2d), "'b' is transposed"),
    (relu_reader, square(), "its reader 'sigmoid' is no convolution"),
    (at_the_end, square(), "its reader 'output' is no convolution"),
    (called_twice, square(), "layer 'a' is used 2 times"),
    (reader_twice, square(), "layer 'b' is used 2 times"),
]


@pytest.mark.parametrize(("function", "reader", "reason"), REFUSED)
def test_refusals_have_reasons(function: Forward, reader: nn.Module, reason: str) -> None:
    model, x = raised(function, a=nn.Conv2d(3, 3, 1), b=reader), images()
    gm, result = absorbed(model, x)
    [why] = {t for n, t in result.refusals.items() if n.name in ("a", "a_1")}
    assert result.rewrites == 0 and why.startswith("bias not absorbed: ") and reason in why
    assert all(torch.equal(p, model.get_parameter(n)) for n, p in gm.named_parameters())


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_layer_that_must_stay_is_left_with_its_readers(name: str) -> None:
    model, x = raised(chain, a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 3, 1)), images()
    gm, result = absorbed(model, x, refuse=lambda node: "as it is" if node.name == name else None)
    assert list(result.refusals.values()) == ["bias not absorbed: as it is"]
    assert torch.equal(gm(x), model(x))


@pytest.mark.parametrize("clamp", [F.relu6, F.leaky_relu, torch.tanh])
def test_only_a_relu_lets_a_constant_through(clamp: Callable[[Tensor], Tensor]) -> None:
    model, x = raised(lambda m, x: m.b(clamp(m.a(x))), a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 3, 1)), images()
    gm, result = absorbed(model, x)
    assert result.rewrites == 0 and torch.equal(gm(x), model(x))


@pytest.mark.parametrize("width", [6, 7])
def test_a_reader_along_another_axis_is_left_alone(width: int) -> None:
    model, x = raised(chain, a=nn.Conv2d(3, 6, 1), b=nn.Linear(width, 4)), torch.randn(2, 3, 5, width)
    gm, _ = absorbed(model, x)
    torch.testing.assert_close(gm(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("choice", [True, False])
def test_the_configuration_decides(choice: bool) -> None:
    model, x = raised(chain, a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 4, 3)), images()
    q = compiled(model, [x], config=QuantConfig(absorb_bias=choice))
    assert any("bias absorbed: up to" in r.reason for r in q.report.rows) == choice
