"""Frozen graphs, and what their verification finds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from fxquant import VerificationError
from fxquant.backends.base.backend import Lowered
from fxquant.compiler.numerics.observer import Observer
from fxquant.compiler.numerics.quantize import dequantize, quantize
from fxquant.compiler.numerics.stubs import DeQuantStub, QuantStub
from fxquant.compiler.workflows.stages import FrozenModel
from fxquant.compiler.workflows.static import prepare_and_calibrate, round_values
from fxquant.passes.quantization.verify import verify
from tests.compiler.toys import Lambda, compiled, data, images, row, settle, small, sqnr

from .placed_graphs import options, placed


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
