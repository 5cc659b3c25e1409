"""Precision, placement, freezing and the proof, from prepared graphs to frozen ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxquant
from fxquant import QuantConfig, VerificationError
from fxquant.backends.base.backend import Lowered
from fxquant.backends.registry import create_backend
from fxquant.compiler.numerics.observer import Observer
from fxquant.compiler.numerics.quantize import dequantize, quantize
from fxquant.compiler.numerics.stubs import DeQuantStub, QuantStub
from fxquant.compiler.workflows.options import Options
from fxquant.compiler.workflows.stages import FrozenModel
from fxquant.compiler.workflows.static import capture_model, prepare_and_calibrate, round_values
from fxquant.passes.quantization.verify import verify
from tests.compiler.toys import Lambda, compiled, data, images, row, rows, settle, small, sqnr
from tests.models import mobilenet_v3_large, resnet18


def prepared(model: nn.Module, *given: Tensor) -> fxquant.Prepared:
    result = fxquant.prepare(model, backend="reference")
    for x in given or tuple(data()):
        result(x)
    return result


def placed(gm: fx.GraphModule, kind: type[nn.Module]) -> list[fx.Node]:
    modules = dict(gm.named_modules())
    return [n for n in gm.graph.nodes if n.op == "call_module" and isinstance(modules[str(n.target)], kind)]


def options() -> Options:
    return Options(create_backend("reference"), fxquant.QuantConfig())


@pytest.mark.parametrize("name", ["small", "resnet18"])
def test_prepared_is_bitwise_the_folded_model(name: str) -> None:
    model = small() if name == "small" else settle(resnet18(10, 0.25))
    x = images() if name == "small" else images(1, size=64)
    p = fxquant.prepare(model, backend="reference")
    folded = capture_model(model, options()).gm
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

    model = Lambda(forward, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1)).eval()
    x = images()
    for backend in ("reference", "x86"):
        # Without the override, timing decides whether so small a layer runs in int8.
        config = QuantConfig(overrides={"b": QuantConfig()})
        q = compiled(model, [x, images()], backend=backend, config=config)
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


def frozen(model: nn.Module) -> tuple[FrozenModel, Lowered]:
    """A frozen model, and what the reference backend makes of it."""
    found = round_values(prepare_and_calibrate(model, data(), options(), 8))
    return found, found.options.backend.lower(found.program, {})


def calls(gm: fx.GraphModule, target: Any) -> list[fx.Node]:
    return [n for n in gm.graph.nodes if n.op == "call_function" and n.target is target]


def test_frozen_graph_holds_pairs_and_no_observers() -> None:
    gm = frozen(small())[0].gm
    gm.graph.lint()
    assert not placed(gm, Observer) and not placed(gm, QuantStub) and not placed(gm, DeQuantStub)
    for node in calls(gm, quantize):
        assert all(u.target is dequantize and u.args[1:] == node.args[1:3] for u in node.users)
        assert all(isinstance(v, int | float) for v in node.args[1:])
    assert not list(gm.parameters()), "every weight is an integer"


def test_a_correct_graph_passes() -> None:
    model, lowered = frozen(small())
    verify(lowered, model.assignment)


def test_other_parameters_on_one_side_are_found() -> None:
    model, lowered = frozen(small())
    node = calls(lowered.executed.module, dequantize)[1]
    node.args = (node.args[0], 2 * float(node.args[1]), node.args[2])  # type: ignore[arg-type]
    with pytest.raises(VerificationError, match="with other parameters than the value was quantized with"):
        verify(lowered, model.assignment)


def test_a_dequantize_of_no_integers_is_found() -> None:
    model, lowered = frozen(small())
    node = calls(lowered.executed.module, dequantize)[1]
    quantized: Any = node.args[0]
    node.args = (quantized.args[0], *node.args[1:])
    with pytest.raises(VerificationError, match=r"dequantizes a value that nothing quantized"):
        verify(lowered, model.assignment)


def test_quantizing_again_is_found() -> None:
    model, lowered = frozen(small())
    gm = lowered.executed.module
    pair = calls(gm, dequantize)[0]
    first: Any = pair.args[0]
    with gm.graph.inserting_after(pair):
        gm.graph.call_function(quantize, (pair, *first.args[1:]))
    with pytest.raises(VerificationError, match="quantizes a value again"):
        verify(lowered, model.assignment)


def test_an_op_without_a_kernel_is_found() -> None:
    model, lowered = frozen(small())
    lost = model.assignment.int8_units[0].root
    choices = {n: k for n, k in lowered.choices.items() if n is not lowered.of[lost]}
    with pytest.raises(VerificationError, match=f"'{lost.name}'.*got no kernel"):
        verify(dataclasses.replace(lowered, choices=choices), model.assignment)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda x: x[:, :1, 0, 0], r"returns torch.float32 \(2, 1\), expected torch.float32 \(2, 5\)"),
        (lambda x: torch.zeros(2, 5, dtype=torch.float64), r"returns torch.float64"),
        (lambda x: torch.full((2, 5), torch.nan), "NaN or inf"),
        (lambda x: (torch.zeros(2, 5), x), "returns 2 tensors, expected 1"),
        (lambda x: 1 / 0, "does not run"),
    ],
)
def test_a_wrong_result_is_found(run: Callable[[Tensor], Any], message: str) -> None:
    model, lowered = frozen(small())
    with pytest.raises(VerificationError, match=message):
        verify(dataclasses.replace(lowered, run=run), model.assignment)


def test_an_fp32_op_without_reason_is_found() -> None:
    net = Lambda(lambda m, x: m.b(torch.sub(m.a(x), 1)), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1)).eval()
    model, lowered = frozen(net)
    assert model.assignment.reasons
    silent = dataclasses.replace(model.assignment, reasons=dict.fromkeys(model.assignment.reasons, ""))
    with pytest.raises(VerificationError, match="has no reason"):
        verify(lowered, silent)


def test_split_and_chunk_pass_integers_through() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        a, b = m.a(x).chunk(2, 1)
        return m.b(a + b)

    model = settle(Lambda(forward, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(4, 4, 1)))
    x = images()
    for backend in ("reference", "x86"):
        q = compiled(model, [x], backend=backend)
        assert row(q, "chunk").precision == "int8"
        assert sqnr(model(x), q(x)) > 25


def test_a_value_read_in_int8_and_in_fp32() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.a(x)
        return m.b(y), torch.sin(y), y

    model = Lambda(forward, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1)).eval()
    x = images()
    for backend in ("reference", "x86"):
        q = compiled(model, [x], backend=backend)
        assert all(sqnr(a, b) > 25 for a, b in zip(model(x), q(x), strict=True))
