"""How much accuracy each op costs in int8, measured at the model's output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate
from torch import nn
from tqdm import tqdm

from ...backends.base.backend import Target
from ...backends.base.op import Output
from ...backends.ops.units import Unit
from ...passes.analysis.op_exchange import OpExchange
from ..capture.capture import Leaf
from ..capture.model_checks import checked_model
from ..core.config import QuantConfig
from ..core.entry_point import entry_point
from ..core.errors import ConfigError
from ..core.messages import check_positive, nearest
from ..core.progress import progress_bar, verbosity
from ..execution.sample import Batch
from ..numerics.meters import METRICS, MeanMeter, Measure, Meter
from ..report.rows import row_name
from ..workflows.options import Options
from ..workflows.precision_mix import with_fp32_ops
from ..workflows.stages import CalibratedModel, FrozenModel
from ..workflows.static import freeze, prepare_and_calibrate


@dataclass(frozen=True)
class UnitSensitivity:
    """The sensitivity of one op.

    Attributes:
        node, op: as in the report.
        key: its name in :attr:`QuantConfig.overrides`. (There a key that is also the name of an op or a module, such as
            ``"add"``, names all of these.)
        only: the metric of the output if only this op is int8.
        but: the metric of the output if all ops but this one are int8.
    """

    node: str
    key: str
    op: str
    only: float
    but: float


@dataclass(frozen=True)
class Sensitivity:
    """The result of :func:`sensitivity`. Print it for a table, the costliest op first.

    Attributes:
        rows: in the order in which the ops run.
        metric: what was measured; of ``"sqnr"`` more is better, of the others less.
        int8: the metric if all of them are int8.
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
        columns = ("node", "op", f"{self.metric}: only this op int8", "all but this op")
        return f"all int8: {self.int8:.4g}\n" + tabulate(body, columns, disable_numparse=True)


@entry_point
def sensitivity(
    model: nn.Module,
    calibration: Iterable[Any],
    *,
    metric: str | Measure = "sqnr",
    config: QuantConfig | None = None,
    target: Target | None = None,
    leaf_modules: Sequence[Leaf] = (),
    batches: int = 8,
    verbose: bool | None = None,
) -> Sensitivity:
    """Measure what each op of a static quantization costs at the model's output. Nothing is lowered.

    Every op is measured twice: it alone is int8 (its inputs, weight and output are rounded), and it alone is not. Ops
    that pass integers on round nothing, and have no row.

    Args:
        model: as of :func:`fxquant.compile`; it is not changed.
        calibration: as of ``compile``. Ranges are found and everything is measured on the first ``batches``.
        metric: ``"sqnr"`` [dB], ``"mse"``, ``"kl"`` (divergence of the softmax of logits along the last axis), or a
            function of the fp32 and the int8 output. Of a function, the mean over the batches is taken; less is better.
        config, target, leaf_modules, verbose: as of ``compile``.
        batches: use at most this many batches. They stay in memory, with all intermediate values of one of them.

    Raises:
        ConfigError, ModelError, CaptureError, CalibrationError: as of ``compile``.
    """
    if not callable(metric) and not (isinstance(metric, str) and metric in METRICS):
        raise ConfigError(f"metric is {metric!r}, neither a function nor a name. {nearest(str(metric), METRICS)}")
    check_positive("batches", batches)
    model = checked_model(model)
    options = Options.of(config, target=target, leaf_modules=leaf_modules)
    given: list[Batch] = []
    with verbosity(verbose):
        calibrated = prepare_and_calibrate(model, calibration, options, batches, given)
        return measure_sensitivity(freeze_all(calibrated), given, metric)


def freeze_all(model: CalibratedModel) -> FrozenModel:
    """A frozen copy of a calibrated model with all int8 ops in int8."""
    return freeze(with_fp32_ops(model, {}))


def measure_sensitivity(frozen: FrozenModel, given: Sequence[Batch], metric: str | Measure) -> Sensitivity:
    """The sensitivities of the ops of a frozen model, on the batches ``given``."""
    new = (lambda: MeanMeter(metric)) if callable(metric) else METRICS[metric]
    whole, meters = new(), dict[Unit, _Meters]()
    for exchange, units in exchanges(frozen, given):
        output = exchange.fp32.output
        whole.add(output, exchange.int8.output)
        for unit in units:
            both = meters.setdefault(unit, _Meters(new(), new()))
            both.only.add(output, exchange.only(unit))
            both.but.add(output, exchange.all_except(unit))
    rows = (
        UnitSensitivity(row_name(unit.root), unit.root.name, unit.name, both.only.value, both.but.value)
        for unit, both in meters.items()
    )
    name = metric if isinstance(metric, str) else getattr(metric, "__name__", type(metric).__name__)
    return Sensitivity(tuple(rows), name, whole.value)


def exchanges(frozen: FrozenModel, given: Sequence[Batch]) -> Iterator[tuple[OpExchange, Iterator[Unit]]]:
    """For each batch, the runs in fp32 and frozen, and the int8 ops to measure, whose iteration is shown."""
    units = [u for u in frozen.assignment.int8_units if u.row.output is not Output.SHARED]
    with progress_bar("sensitivity", "op", len(units) * len(given)) as bar:
        for batch in given:
            yield OpExchange.on(batch, frozen.gm, frozen.exact, frozen.assignment), _shown(units, bar)


def _shown(units: Sequence[Unit], bar: tqdm[Any]) -> Iterator[Unit]:
    for unit in units:
        yield unit
        bar.update()


@dataclass(frozen=True)
class _Meters:
    only: Meter
    but: Meter
