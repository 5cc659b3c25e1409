"""How much each op that becomes int8 costs in accuracy, measured at the model's output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate
from torch import nn
from tqdm import tqdm

from ..backends.base import Output, Target
from ..backends.units import Unit, unit_name
from ..backends.x86 import X86Backend
from .batches import Batch
from .capture import Leaf, check_model
from .config import QuantConfig
from .errors import ConfigError, check_positive, nearest
from .lockstep import Twin
from .meters import METRICS, MeanMeter, Measure, Meter
from .mixes import mix
from .pair import Pair, int8_nodes
from .pipeline import calibrated, quantize
from .replay import Replay
from .report import row_name
from .work import Options, Work


@dataclass(frozen=True)
class UnitSensitivity:
    """One op that becomes int8: the metric of the output when ``only`` it is, and when all ``but`` it are.

    ``node`` and ``op`` are those of the report, ``key`` names it in :attr:`QuantConfig.overrides`. (There a key that is
    also the name of an op or a module, such as ``"add"``, speaks of all of these.)
    """

    node: str
    key: str
    op: str
    only: float
    but: float


@dataclass(frozen=True)
class Sensitivity:
    """What :func:`sensitivity` found; print it for a table, the costliest op first.

    Attributes:
        rows: in the order in which the ops run.
        metric: what was measured; of ``"sqnr"`` more is better, of the others less.
        int8: the metric with all of them in int8.
    """

    rows: tuple[UnitSensitivity, ...]
    metric: str
    int8: float

    @property
    def ranked(self) -> list[UnitSensitivity]:
        """The rows, the costliest first."""
        return sorted(self.rows, key=lambda row: row.only, reverse=self.metric != "sqnr")

    def __str__(self) -> str:
        body = [(row.node, row.op, f"{row.only:.4g}", f"{row.but:.4g}") for row in self.ranked]
        columns = ("node", "op", f"{self.metric}: only it int8", "all but it")
        return f"all int8: {self.int8:.4g}\n" + tabulate(body, columns, disable_numparse=True)


def sensitivity(
    model: nn.Module,
    calibration: Iterable[Any],
    *,
    metric: str | Measure = "sqnr",
    config: QuantConfig | None = None,
    target: Target | None = None,
    leaf_modules: Sequence[Leaf] = (),
    batches: int = 8,
) -> Sensitivity:
    """Measure what each op of a static quantization costs at the model's output. Nothing is lowered.

    Every op is measured twice: it alone rounds (its inputs, weight and output) in the fp32 model, and it alone does
    not in the int8 model. Ops that pass integers on have no rounding of their own, and no row.

    Args:
        model: as of ``compile``; it is not changed.
        calibration: as of ``compile``; ranges are found and everything is measured on the first ``batches``, which are
            kept in memory, one at a time with all of its values.
        metric: ``"sqnr"`` [dB], ``"mse"``, ``"kl"`` (divergence of the softmax of logits along the last axis), or a
            function of the outputs in fp32 and with roundings, whose mean over the batches is taken; less is better.
        config: as of ``compile``.
        target: as of ``compile``.
        leaf_modules: as of ``compile``.
        batches: how many batches to use at most.

    Raises:
        ConfigError, ModelError, CaptureError, CalibrationError: as ``compile`` does.
    """
    if not callable(metric) and not (isinstance(metric, str) and metric in METRICS):
        raise ConfigError(f"metric is {metric!r}, neither a function nor a name. {nearest(str(metric), METRICS)}")
    check_positive("batches", batches)
    check_model(model)
    options = Options(X86Backend(target), QuantConfig() if config is None else config, leaf_modules)
    given: list[Batch] = []
    work = calibrated(model, calibration, options, batches, given)
    return measure_sensitivity(*frozen_pair(work), given, metric)


def frozen_pair(work: Work) -> tuple[Work, Twin]:
    """A frozen copy of a calibrated model with all int8 ops, and the model in fp32."""
    frozen = mix(work, {})
    return frozen, quantize(frozen)


def measure_sensitivity(frozen: Work, exact: Twin, given: Sequence[Batch], metric: str | Measure) -> Sensitivity:
    """The sensitivities of a frozen model's ops. Arguments as of :func:`frozen_pair` and :func:`sensitivity`."""
    new = (lambda: MeanMeter(metric)) if callable(metric) else METRICS[metric]
    whole, meters = new(), dict[Unit, _Meters]()
    for pair, units in measured_pairs(frozen, exact, given):
        output = pair.fp32.output
        whole.add(output, pair.int8.output)
        for unit in units:
            both = meters.setdefault(unit, _Meters(new(), new()))
            both.only.add(output, pair.only(unit))
            both.but.add(output, pair.but(unit))
    table = frozen.options.backend.table
    rows = (
        UnitSensitivity(row_name(unit.root), unit.root.name, unit_name(unit, table), both.only.value, both.but.value)
        for unit, both in meters.items()
    )
    name = metric if isinstance(metric, str) else getattr(metric, "__name__", type(metric).__name__)
    return Sensitivity(tuple(rows), name, whole.value)


def measured_pairs(frozen: Work, exact: Twin, given: Sequence[Batch]) -> Iterator[tuple[Pair, Iterator[Unit]]]:
    """For each batch, the model on it in fp32 and frozen, and the int8 ops to measure, whose iteration is shown."""
    assert frozen.assignment is not None
    units = [u for u in frozen.assignment.int8_units if u.rule.output is not Output.SHARED]
    inside = int8_nodes(frozen.assignment)
    with tqdm(total=len(units) * len(given), desc="sensitivity", unit="op", disable=None, leave=False) as progress:
        for batch in given:
            yield Pair(exact, Replay(exact.module, batch), Replay(frozen.gm, batch), inside), _shown(units, progress)


def _shown(units: Sequence[Unit], progress: tqdm[Any]) -> Iterator[Unit]:
    for unit in units:
        yield unit
        progress.update()


@dataclass(frozen=True)
class _Meters:
    only: Meter
    but: Meter
