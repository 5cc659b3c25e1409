"""Every row of the op table: the lowered graph against the frozen graph in plain torch ops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fxquant import QuantConfig
from fxquant.backends.ops.table import OPS
from fxquant.compiler.runtime.quantized_module import QuantizedModule

from ...op_cases import CASES, OpCase
from .support import compiled, oracle, output_step, seeded, sqnr, tensors

# One rounding decides differently where kernel and oracle sum in another order; half a step of slack for fp32.
SLACK = 1.01


def inputs_of(case: OpCase) -> list[tuple[Tensor, ...]]:
    """Batch 1 (the example), 3, and another size."""
    found = [case.inputs(1), case.inputs(3)]
    return [*found, case.other(2)] if case.other else found


def quick(config: QuantConfig) -> QuantConfig:
    """The same with extremes as ranges: the histogram's search takes most of the time of so small a model."""
    overrides = {
        k: replace(v, observer="minmax") if isinstance(v, QuantConfig) else v for k, v in config.overrides.items()
    }
    return replace(config, observer="minmax", overrides=overrides)


def check(case: OpCase, q: QuantizedModule, args: tuple[Tensor, ...]) -> None:
    """The lowered result is the oracle's, up to roundings.

    A single op between quantize and dequantize may differ by one step of its output: its sum is exact, and only
    the last rounding of the requantized fp32 number is the kernel's own. In a chain, a value that was rounded
    the other way is an input of later ops, which see one step of *its* scale: few values, and little against the
    whole signal (30 dB). With an fp32 output, fp32 rounding is all that may differ, unless an int8 op is before.
    """
    actual, expected = tensors(q(*args)), tensors(oracle(q, *args))
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        assert sqnr(theirs, ours) > 30, f"{sqnr(theirs, ours):.1f} dB"
        step = output_step(q)
        difference = (ours - theirs).abs()
        if step is None:
            if case.single:
                assert difference.max() <= 1e-5 * theirs.abs().max()
            continue
        steps = difference / step
        if case.single:
            assert steps.max() <= SLACK, f"{float(steps.max()):.2f} steps"
        else:
            others = int((steps > SLACK).sum())
            assert others <= max(2, 0.01 * steps.numel()), f"{others} of {steps.numel()}"
            assert steps.max() <= 3, f"{float(steps.max()):.2f} steps"


def test_every_row_has_a_case() -> None:
    assert {row.name for row in OPS.rows} <= {case.rule for case in CASES}


def test_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: OpCase) -> None:
    model, data = seeded(case.build).eval(), seeded(lambda: inputs_of(case), 1)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    q = compiled(model, data, config=quick(case.config))
    rows = [row for row in q.report.rows if case.rule in row.op.split(" + ")]
    if case.gone:
        assert not rows
    elif case.int8:
        assert rows and all(row.kernel and (row.precision == "int8" or "fp32" in row.kernel) for row in rows), q.report
    else:
        assert rows and any(row.precision == "fp32" and row.reason for row in rows), q.report
    assert all(row.reason for row in q.report.rows if row.precision == "fp32")
    for args in data:
        kept = [a.clone() for a in args]
        check(case, q, args)
        assert all(torch.equal(a, b) for a, b in zip(args, kept, strict=True)), "an input was overwritten"
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
