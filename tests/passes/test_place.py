"""Where quantize/dequantize pairs are placed."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant.compiler.numerics.observer import Observer
from fxquant.compiler.numerics.stubs import DeQuantStub, QuantStub
from fxquant.compiler.workflows.capture_model import capture_model, captured_on
from tests.compiler.toys import Lambda, compiled, data, images, row, rows, settle, small, sqnr
from tests.models import mobilenet_v3_large, resnet18

from .placed_graphs import options, placed


def prepared(model: nn.Module, *given: Tensor) -> fxquant.Prepared:
    result = fxquant.prepare(model, backend="reference")
    for x in given or tuple(data()):
        result(x)
    return result


@pytest.mark.parametrize("name", ["small", "resnet18"])
def test_prepared_is_bitwise_the_folded_model(name: str) -> None:
    model = small() if name == "small" else settle(resnet18(10, 0.25))
    x = images() if name == "small" else images(1, size=64)
    p = fxquant.prepare(model, backend="reference")
    folded = captured_on(capture_model(model, options()), ((x,), {})).gm
    with torch.no_grad():
        assert torch.equal(p(x), folded(x))
        assert torch.equal(p(x), folded(x))


def test_stubs_stand_at_the_borders() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return m.b(torch.sin(m.a(x)))

    gm = prepared(Lambda(forward, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1)).eval()).graph
    into, out = placed(gm, QuantStub), placed(gm, DeQuantStub)
    assert [str(n.args[0]) for n in into] == ["x", "sin"]
    assert [u.name for n in into for u in n.users] == ["a", "b"]
    readers = {u.op if u.op == "output" else u.name for n in out for u in n.users}
    assert readers == {"sin", "output"}
    assert len(placed(gm, Observer)) == 2


def test_one_border_serves_all_readers() -> None:
    gm = prepared(Lambda(lambda m, x: m.a(x) + m.b(x), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 4, 1)).eval()).graph
    assert len(placed(gm, QuantStub)) == 1


@pytest.mark.parametrize("function", [torch.sin, F.gelu, torch.exp, torch.cumsum])
def test_an_op_without_a_kernel_runs_in_fp32(function: Callable[..., Tensor]) -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.a(x)
        y = function(y, 1) if function is torch.cumsum else function(y)
        return m.b(y)

    # The second layer is large enough to be faster in int8.
    model = Lambda(forward, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 128, 3)).eval()
    x = torch.randn(2, 3, 32, 32)
    for backend in ("reference", "x86"):
        q = compiled(model, [x, torch.randn(2, 3, 32, 32)], backend=backend)
        found = [r for r in q.report.rows if r.op == function.__name__]
        assert [r.precision for r in found] == ["fp32"] and found[0].reason
        assert rows(q, "conv2d")[-1].precision == "int8"
        assert sqnr(model(x), q(x)) > 20


def without_weights(m: Any, x: Tensor) -> Any:
    y = torch.sin(x)
    y = (y + y) * y
    return m.conv(torch.sin(F.max_pool2d(y.relu(), 2)))


def test_a_region_without_weights_stays_fp32() -> None:
    q = compiled(Lambda(without_weights, conv=nn.Conv2d(3, 4, 1)).eval())
    assert row(q, "conv2d").precision == "int8"
    others = [r for r in q.report.rows if not r.op.startswith("conv2d")]
    assert {r.precision for r in others} == {"fp32"}
    assert all(r.reason for r in others)


def test_every_fp32_op_of_a_network_has_a_reason() -> None:
    q = compiled(settle(mobilenet_v3_large(10, 0.35)), [images(1, size=64)])
    assert all(r.reason for r in q.report.rows if r.precision == "fp32")
    assert q.report.counts["int8"] > 50


def test_pass_through_ops_share_the_qparams_of_their_input() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = F.max_pool2d(m.a(x), 2)
        return m.b(y.transpose(1, 2).reshape(y.size(0), -1))

    q = compiled(Lambda(forward, a=nn.Conv2d(3, 4, 1), b=nn.Linear(64, 5)).eval())
    expected = row(q, "conv2d").qparams
    assert expected is not None
    for op in ("max_pool2d", "transpose", "reshape"):
        assert row(q, op).precision == "int8"
        assert row(q, op).qparams == expected


def test_cat_joins_the_qparams_of_all_it_reads() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        a, b = m.a(x), m.b(x) * 3
        return m.last(torch.cat([a, F.max_pool2d(b, 3, 1, 1)], 1))

    model = Lambda(forward, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 4, 1), last=nn.Conv2d(8, 4, 1)).eval()
    x = images()
    q = compiled(model, [x])
    known = {row(q, "cat").qparams, row(q, "max_pool2d").qparams, row(q, "mul").qparams}
    known |= {r.qparams for r in rows(q, "conv2d") if r.node == "a"}
    assert len(known) == 1 and None not in known
    assert sqnr(model(x), q(x)) > 25


def test_chained_cats_join_as_one() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        a = m.a(x)
        b = torch.cat([a, m.b(x)], 1)
        c = torch.cat([b, m.c(b), a], 1)
        return m.last(c)

    model = Lambda(
        forward,
        a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 4, 1), c=nn.Conv2d(8, 4, 1), last=nn.Conv2d(16, 2, 1),
    ).eval()  # fmt: skip
    q = compiled(model)
    joined = [r.qparams for r in q.report.rows if r.node in ("a", "b", "c")]
    joined += [r.qparams for r in rows(q, "cat")]
    assert len(joined) == 5 and len(set(joined)) == 1


def test_a_shared_layer_has_one_weight() -> None:
    model = Lambda(lambda m, x: m.conv(m.conv(x)), conv=nn.Conv2d(3, 3, 1)).eval()
    x = images()
    q = compiled(model, [x])
    assert {r.precision for r in rows(q, "conv2d")} == {"int8"}
    assert sum(b.dtype == torch.int8 for b in q.graph.buffers()) == 1
    assert sqnr(model(x), q(x)) > 25


def test_absorbed_activation_is_observed_behind_it() -> None:
    q = compiled(small())
    known = rows(q, "conv2d")[0].qparams
    assert known is not None and known.zero_point == 0, "no integer is spent below a relu's zero"


def test_an_activation_is_not_absorbed_past_another_reader() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.a(x)
        return m.b(y.relu() + y)

    model = Lambda(forward, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1)).eval()
    q = compiled(model)
    assert "not absorbed" in " ".join(r.reason for r in q.report.rows) or row(q, "relu").precision == "int8"
    x = images()
    assert sqnr(model(x), q(x)) > 25


class Pooled(nn.Module):
    """A convolution whose least values a pool drops."""

    def __init__(self, **options: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
        self.pool = nn.MaxPool2d(2, **options)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(self.first(x))
        return self.last(y[0] if isinstance(y, tuple) else y)


def test_what_a_max_pool_drops_needs_no_range() -> None:
    torch.manual_seed(0)
    model, x = Pooled().eval(), torch.randn(8, 3, 16, 16)
    q = fxquant.compile(model, calibration=[x], config=fxquant.QuantConfig(observer="minmax"), backend="reference")
    (row,) = [row for row in q.report.rows if row.node == "first"]
    assert row.qparams is not None
    low, high = (row.qparams.scale * (bound - row.qparams.zero_point) for bound in (0, 255))
    with torch.no_grad():
        whole = model.first(x)
        passed = model.pool(whole)
    assert low == pytest.approx(float(passed.min()), abs=row.qparams.scale)
    assert high == pytest.approx(float(passed.max()), abs=row.qparams.scale)
    assert float(whole.min()) < low - 5 * row.qparams.scale


def test_a_pool_that_returns_indices() -> None:
    torch.manual_seed(0)
    model, x = Pooled(return_indices=True).eval(), torch.randn(4, 3, 8, 8)
    q = fxquant.compile(model, calibration=[x], backend="llvm")
    assert sqnr(model(x), q(x)) > 25


def test_observers_in_front_of_a_pool_can_be_pickled() -> None:
    prepared = fxquant.prepare(Pooled().eval(), calibration=[torch.randn(2, 3, 8, 8)])
    observers = [m for m in prepared.modules() if isinstance(m, Observer)]
    assert any(m.behind is not None for m in observers)
    x = torch.randn(1, 4, 4, 4)
    for observer in observers:
        again = pickle.loads(pickle.dumps(observer))
        assert observer.behind is None or torch.equal(again.behind(x), observer.behind(x))
