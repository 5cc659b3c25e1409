"""How much each op that becomes int8 costs in accuracy, measured at the model's output."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate
from torch import fx, nn
from tqdm import tqdm

from ..backends.base import Backend, Output, Target
from ..backends.units import Unit, tensor_inputs, unit_name
from ..backends.x86 import X86Backend
from .batches import copied, run_batch, sampled
from .capture import Leaf, check_model
from .config import QuantConfig
from .errors import ConfigError, check_positive, nearest
from .lockstep import Twin
from .meters import METRICS, MeanMeter, Measure, Meter
from .pipeline import Options, prepare, quantize, start
from .qdq import dequantize, literal_qparams, quantize_behind, round_trip
from .replay import Replay
from .report import row_name
from .types import QParams


@dataclass(frozen=True)
class UnitSensitivity:
    """One op that becomes int8: the metric of the output when ``only`` it is, and when all ``but`` it are.

    ``node`` and ``op`` are those of the report, ``key`` names it in :attr:`QuantConfig.overrides`.
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
    if not callable(metric) and metric not in METRICS:
        raise ConfigError(f"metric is {metric!r}, neither a function nor a name. {nearest(metric, METRICS)}")
    check_positive("batches", batches)
    check_model(model)
    backend = X86Backend(target)
    new = (lambda: MeanMeter(metric)) if callable(metric) else METRICS[metric]
    whole, meters = new(), dict[Unit, _Meters]()
    chosen = QuantConfig() if config is None else config
    for pair, units in measured_pairs(model, calibration, chosen, backend, leaf_modules, batches):
        exact = pair.fp32.output
        whole.add(exact, pair.int8.output)
        for unit in units:
            both = meters.setdefault(unit, _Meters(new(), new()))
            both.only.add(exact, pair.only(unit))
            both.but.add(exact, pair.but(unit))
    rows = (
        UnitSensitivity(
            row_name(unit.root), unit.root.name, unit_name(unit, backend.table), both.only.value, both.but.value
        )
        for unit, both in meters.items()
    )
    return Sensitivity(tuple(rows), metric if isinstance(metric, str) else metric.__name__, whole.value)


def measured_pairs(
    model: nn.Module,
    calibration: Iterable[Any],
    config: QuantConfig,
    backend: Backend,
    leaf_modules: Sequence[Leaf],
    batches: int,
) -> Iterator[tuple[Pair, Iterator[Unit]]]:
    """For each batch, the model on it in fp32 and frozen, and the int8 ops to measure, whose iteration is shown.

    Arguments as of :func:`sensitivity`.
    """
    work = start(model, Options(backend, config, leaf_modules))
    sample, stream = sampled(calibration, work.gm, batches)
    prepare(work, sample)
    given = [copied(batch) for batch in stream]
    for number, batch in enumerate(given):
        run_batch(work.gm, batch, number)
    twin = quantize(work)
    assert work.assignment is not None
    units = [u for u in work.assignment.int8_units if u.rule.output is not Output.SHARED]
    int8_nodes = frozenset(node for unit in work.assignment.int8_units for node in unit.nodes)
    with tqdm(total=len(units) * len(given), desc="sensitivity", unit="op", disable=None, leave=False) as progress:
        for batch in given:
            yield Pair(twin, Replay(twin.module, batch), Replay(work.gm, batch), int8_nodes), _shown(units, progress)


def _shown(units: Sequence[Unit], progress: tqdm[Any]) -> Iterator[Unit]:
    for unit in units:
        yield unit
        progress.update()


@dataclass(frozen=True)
class _Meters:
    only: Meter
    but: Meter


@dataclass(frozen=True)
class Pair:
    """A batch in the fp32 and in the frozen graph, of whose nodes ``int8_nodes`` are those of int8 ops."""

    twin: Twin
    fp32: Replay
    int8: Replay
    int8_nodes: frozenset[fx.Node]

    def only(self, unit: Unit) -> Any:
        """The output when only ``unit`` rounds."""
        values = ChainMap(dict[fx.Node, Any](), self.int8.values)
        for ours, theirs in self._inputs(unit):
            exact = self.fp32.values[ours]
            values[theirs] = round_trip(exact, _qparams(theirs)) if theirs.target is dequantize else exact
        for node in unit.nodes:
            values[node] = self.int8.evaluate(node, values)
        result, behind = values[unit.output], _pair_behind(unit)
        return self.fp32.with_value(
            self.twin.of[unit.output], result if behind is None else round_trip(result, _qparams(behind))
        )

    def but(self, unit: Unit) -> Any:
        """The output when all but ``unit`` round: what no other int8 op gives or reads is not rounded, either."""
        values = ChainMap(dict[fx.Node, Any](), self.fp32.values)
        values |= {ours: self.int8.values[self._without_pair(theirs, unit)] for ours, theirs in self._inputs(unit)}
        for node in unit.nodes:
            values[self.twin.of[node]] = self.fp32.evaluate(self.twin.of[node], values)
        behind = _pair_behind(unit)
        unread = behind is not None and self.int8_nodes.isdisjoint(behind.users)
        place = behind if unread and behind is not None else unit.output
        return self.int8.with_value(place, values[self.twin.of[unit.output]])

    def _inputs(self, unit: Unit) -> zip[tuple[fx.Node, fx.Node]]:
        """The tensors that ``unit`` reads, in the fp32 and in the frozen graph."""
        return zip(tensor_inputs(self.twin.of[unit.root], unit.rule), unit.inputs, strict=True)

    def _without_pair(self, node: fx.Node, unit: Unit) -> fx.Node:
        """What ``node`` rounds for ``unit`` alone; ``node`` itself where others need it rounded."""
        if node.target is not dequantize or set(node.users) != {unit.root}:
            return node
        source: fx.Node = node.args[0].args[0]  # type: ignore[union-attr,assignment]
        return node if source in self.int8_nodes else source


def _pair_behind(unit: Unit) -> fx.Node | None:
    """The ``dequantize`` behind ``unit``."""
    behind = quantize_behind(unit.output)
    return next(iter(behind.users)) if behind is not None else None


def _qparams(pair: fx.Node) -> QParams:
    """Of a ``dequantize``."""
    return literal_qparams(pair.args[0])  # type: ignore[arg-type]
