"""From a module in training to an int8 one, and how near the two are."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from typing import Any

from torch import fx

from ...backends.base.backend import Lowered
from ..capture.model_checks import check_tensors
from ..execution.batches import run_batches
from ..execution.sample import Sample
from ..numerics.metrics import sqnr
from ..workflows.qat import convert_training
from .compiled import Compiled
from .qat_module import QATModule


def convert_trained(prepared: QATModule) -> Compiled:
    """The int8 form of a module in training, which is not changed.

    Raises:
        ModelError: its parameters are not fp32 on the CPU, or hold NaN or inf.
    """
    check_tensors(prepared)
    trained = copy.deepcopy(prepared).eval().requires_grad_(False)
    sample = trained.training_model.prepared.sample
    expected = run_batches(trained, sample, "run the trained module")
    result = convert_training(trained.training_model)
    remark = _agreement(result.lowered, sample, expected)
    return Compiled.of(replace(result, report=replace(result.report, remark=remark)))


def _agreement(lowered: Lowered, sample: Sample, expected: list[Any]) -> str:
    """How near the int8 form is to the trained module in eval mode, on the calibration sample."""
    given = run_batches(lowered.run, sample, "compare int8")
    text = f"SQNR against the trained module: {sqnr(expected, given):.1f} dB on {len(sample)} calibration batches"
    if lowered.kernel_errors is None:
        return text
    steps = Counter[fx.Node]()
    for errors in run_batches(lowered.kernel_errors, sample, "compare kernels"):
        steps |= Counter(errors)
    over = [f"'{node.args[0]}' ({count})" for node, count in steps.items() if count > 1]
    return f"{text}; " + (
        f"kernels that differ by more than one quantization step: {', '.join(over)}"
        if over
        else "no layer differs by more than one quantization step"
    )
