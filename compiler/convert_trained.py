"""From a module in training to an int8 one, and how near the two are."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from typing import Any

from torch import fx

from ..backends.base import Lowered
from .batches import Sample, run_batch
from .capture import check_tensors
from .lockstep import sqnr
from .module import Compiled
from .qat import convert
from .qat_module import QATModule


def convert_trained(prepared: QATModule) -> Compiled:
    """The int8 form of a module in training, which is left as it is.

    Raises:
        ModelError: its parameters are not fp32 on the CPU, or hold NaN or inf.
    """
    check_tensors(prepared)
    trained = copy.deepcopy(prepared).eval()
    work = trained._training.work
    expected = [run_batch(trained, batch, number) for number, batch in enumerate(work.sample)]
    lowered, report = convert(trained._training)
    report = replace(report, remark=_agreement(lowered, work.sample, expected))
    return Compiled(lowered.run, report, work.gm, work.gm, work.snapshots)


def _agreement(lowered: Lowered, sample: Sample, expected: list[Any]) -> str:
    """How near the int8 form is to the trained module in eval mode, as measured on the calibration sample."""
    given = [run_batch(lowered.run, batch, number) for number, batch in enumerate(sample)]
    text = f"against the trained module {sqnr(expected, given):.1f} dB on {len(sample)} calibration batches"
    if lowered.apart is None:
        return text
    steps = Counter[fx.Node]()
    for batch in sample:
        steps |= Counter(lowered.apart(*batch[0], **batch[1]))
    over = [f"'{node.args[0]}' {count}" for node, count in steps.items() if count > 1]
    return f"{text}, " + (f"steps apart: {', '.join(over)}" if over else "no layer more than one step apart")
