"""Every row of the op table: native code against the program in plain torch ops."""

from __future__ import annotations

import pytest
import torch

from fxquant import ModelError
from fxquant.backends.registry import create_backend

from ...op_cases import CASES, OpCase
from ..x86.support import compiled, seeded
from ..x86.test_op_cases import check, inputs_of, quick

NO_INT8 = ("matmul", "group_norm", *(f"instance_norm{d}d" for d in (1, 2, 3)))


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: OpCase) -> None:
    model, data = seeded(case.build).eval(), seeded(lambda: inputs_of(case), 1)
    if case.rule in NO_INT8 and case.single:
        with pytest.raises(ModelError, match="the llvm backend has no int8 kernel for it"):
            compiled(model, data, config=quick(case.config), backend="llvm", executor="auto")
        return
    q = compiled(model, data, config=quick(case.config), backend="llvm", executor="auto")
    rows = [row for row in q.report.rows if case.rule in row.op.split(" + ")]
    assert bool(rows) != case.gone
    assert all(row.kernel if row.precision == "int8" else row.reason for row in q.report.rows), q.report
    lowered = create_backend("llvm").lower(q.program, {}) if q.program is not None else None
    for args in data:
        kept = [a.clone() for a in args]
        check(case, q, args)
        assert all(torch.equal(a, b) for a, b in zip(args, kept, strict=True)), "an input was overwritten"
        if lowered is not None and lowered.kernel_errors is not None and not q.program.dynamic_layers:
            assert max(lowered.kernel_errors(*args).values(), default=0) <= 1
