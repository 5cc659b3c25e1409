"""The captured graph computes what forward() computes, or the model is refused: memory, state, layouts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant import CaptureError
from fxquant.compiler.capture.capture import capture
from fxquant.compiler.capture.graph_checks import computes_the_same
from fxquant.compiler.execution.interface import ANY_CALL
from fxquant.compiler.numerics.metrics import sqnr

from .toys import Lambda

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))

Forward = Callable[[Any, Tensor], Any]


def attribute_changed(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    v = y.max(1).values
    w = v.unsqueeze(1)
    v += 5
    return m.d(y) * w


def attribute_read_again(m: Any, x: Tensor) -> Any:
    r = m.c(x).max(1)
    v = r.values
    v += 2
    return r.values * 1


def accumulator(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    total = torch.zeros(1)
    for i in range(3):
        total.add_(y[:, i].mean())
    return m.d(y) * total


def filled(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    out = torch.zeros(4, 8, 8, 8)
    out.copy_(y)
    return m.d(out)


def view_of_a_constant(m: Any, x: Tensor) -> Any:
    t = torch.zeros(8)
    u = t.view(8, 1, 1)
    t += m.p
    return m.d(m.c(x) * u)


def plus(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    z = +y
    y += 1
    return z * 1


def operator_of_aten(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    torch.ops.aten.add_.Tensor(y, 3.0)
    return m.d(y)


def two_results(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    values, places = torch.empty(4, 8, 8), torch.empty(4, 8, 8, dtype=torch.long)
    torch.max(y, 1, out=(values, places))
    return m.d(y) * values.unsqueeze(1)


def items_assigned(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    y[:, 0] = 2
    y[:, ::2] *= 3
    y[y < 0] = 0
    return m.d(y)


def memory_as_it_lies(m: Any, x: Tensor) -> Any:
    return m.c(x).as_strided((2, 3), (3, 1)) * 1


def size_as_argument(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    return m.d(F.adaptive_avg_pool2d(y, y.shape[2:]))


def other_numbers_in_the_same_memory(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    return m.d(y), y.view(torch.int32).shape[0]


RIGHT = (
    attribute_changed, attribute_read_again, accumulator, filled, view_of_a_constant, plus, operator_of_aten,
    two_results, items_assigned, memory_as_it_lies, size_as_argument, other_numbers_in_the_same_memory,
)  # fmt: skip


def test_an_arg_max_between_equal_values_is_no_other_result() -> None:
    def near(nearly: float) -> Any:
        return lambda m, x: (m.c(x) + torch.tensor([nearly, 0.0]).repeat(4).view(8, 1, 1)).argmax(1)

    first, second = (Lambda(near(n), c=nn.Conv2d(3, 8, 1)).eval() for n in (0.0, 1e-7))
    second.load_state_dict(first.state_dict())
    assert computes_the_same(capture(first), second, ANY_CALL, ((X,), {}))
    third = Lambda(lambda m, x: m.c(x).argmin(1), c=first.get_submodule("c")).eval()
    assert not computes_the_same(capture(first), third, ANY_CALL, ((X,), {}))


class Flat(nn.Module):
    """Needs contiguous memory."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1)


class Doubling(nn.Module):
    """Changes its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2)


def model(forward: Forward) -> nn.Module:
    torch.manual_seed(0)
    parts: dict[str, Any] = {"c": nn.Conv2d(3, 8, 3, padding=1), "d": nn.Conv2d(8, 8, 1), "n": torch.ones(1)}
    return Lambda(forward, **parts, p=torch.randn(8), flat=Flat(), doubling=Doubling()).eval()


@pytest.mark.parametrize("forward", RIGHT)
def test_compiled(forward: Forward) -> None:
    net = model(forward)
    q = fxquant.compile(net, calibration=[X])
    with torch.no_grad():
        expected, given = net(X), q(X)
    first, second = (v if isinstance(v, tuple) else (v,) for v in (expected, given))
    assert sqnr(first[:1], second[:1]) > 25


def replaced_data(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    y.data = y * 2
    return m.d(y)


def view_by_einsum(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    z = torch.einsum("nchw->nhwc", y)
    z += 1
    return y


@pytest.mark.parametrize("forward", (replaced_data, view_by_einsum))
def test_what_neither_front_end_captures_stays_python(forward: Forward) -> None:
    net = model(forward)
    q = fxquant.compile(net, calibration=[X])
    assert "does not compute what forward() computes" in q.report.islands[""]
    with torch.no_grad():
        assert sqnr([net(X)], [q(X)]) > 25


def test_leaf_modules_get_memory_as_in_fp32() -> None:
    net = model(lambda m, x: m.flat(m.c(x)))
    q = fxquant.compile(net, calibration=[X], leaf_modules=["flat"])
    assert sqnr([net(X).detach()], [q(X)]) > 25


def test_a_leaf_that_changes_its_input_is_called_by_python() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.c(x)
        m.doubling(y)
        return m.d(y)

    net = model(forward)
    q = fxquant.compile(net, calibration=[X], leaf_modules=["doubling"])
    assert "does not compute what" in q.report.islands[""]
    with torch.no_grad():
        assert sqnr([net(X)], [q(X)]) > 25


class Stateful(nn.Module):
    """Keeps something from call to call."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.c, self.kind, self.calls, self.last = nn.Conv2d(3, 8, 3), kind, 0, torch.zeros(())
        self.register_buffer("count", torch.zeros(()))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Any:
        y = self.c(x)
        if self.kind == "buffer":
            assert isinstance(self.count, Tensor)
            self.count.add_(1)
            return y * self.count
        if self.kind == "number":
            self.calls += 1
            return y * self.calls
        if self.kind == "tensor":
            self.last = self.last + y.mean()
            return y + self.last
        if self.kind == "list":
            self.seen.append(y.mean())
            return y * len(self.seen)
        self.last, self.calls = y.mean(), self.calls + 1  # to be looked at, not read
        return y


@pytest.mark.parametrize(
    ("kind", "name"), [("buffer", "count"), ("number", "calls"), ("tensor", "last"), ("list", "seen")]
)
def test_a_state_is_named_and_kept_by_python(kind: str, name: str) -> None:
    net = Stateful(kind).eval()
    before = copy.deepcopy(net.__dict__)
    q = fxquant.compile(net, calibration=[X, X * 2])
    assert q.report.islands == {"": f"forward() changes '{name}' and computes from it."}
    assert net.calls == before["calls"] and not net.seen and torch.equal(net.last, before["last"])
    assert net.count == 0
    copied = copy.deepcopy(q)
    for scale in (1, 2, 0.5):  # from the state that the model was compiled in, each copy with its own
        with torch.no_grad():
            expected = net(X * scale)
            assert sqnr([expected], [q(X * scale)]) > 25 and sqnr([expected], [copied(X * scale)]) > 25


def test_a_state_is_refused_where_a_graph_is_needed() -> None:
    with pytest.raises(CaptureError, match="forward\\(\\) changes 'calls' and computes from it"):
        fxquant.sensitivity(Stateful("number").eval(), [X])


def test_what_is_kept_to_be_looked_at_is_no_state() -> None:
    net = Stateful("shown").eval()
    assert sqnr([net(X).detach()], [fxquant.compile(net, calibration=[X])(X)]) > 25
