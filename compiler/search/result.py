"""The result of a search as data, tables and a plot."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from ..core.errors import FxquantError
from ..diagnosis.sensitivity import Sensitivity
from ..runtime.quantized_module import QuantizedModule


@dataclass(frozen=True)
class Prediction:
    """The prediction for a mix.

    Attributes:
        milliseconds: without the ops that are fp32 in every mix.
        noise: noise power divided by output power.
    """

    milliseconds: float
    noise: float

    @property
    def decibels(self) -> float:
        """The noise as SQNR [dB]."""
        return -10 * math.log10(self.noise) if self.noise > 0 else math.inf


@dataclass(frozen=True)
class Trial:
    """A mix that was evaluated.

    Attributes:
        fp32: the keys (see :attr:`UnitSensitivity.key`) of the ops that it keeps in fp32, without those that have no
            int8 form.
        predicted: its predicted time and noise.
        value: what evaluate returned.
        within: whether that is within the budget.
        milliseconds: latency [ms] on the first calibration batch; None if it is not within the budget.
        ratio: its latency divided by that of the float model, measured in turns.
    """

    fp32: frozenset[str]
    predicted: Prediction
    value: float
    within: bool
    milliseconds: float | None = None
    ratio: float | None = None


@dataclass(frozen=True)
class FrontPoint:
    """A mix of the predicted Pareto front.

    Attributes:
        fp32, predicted: as of :class:`Trial`.
        trial: None if it was not tried.
    """

    fp32: frozenset[str]
    predicted: Prediction
    trial: Trial | None


@dataclass(frozen=True)
class SearchResult:
    """What :func:`fxquant.search` returns; print it for the tables.

    Attributes:
        best: the module to use.
        chosen: the mix of that module.
        front: the predicted front, from the fastest mix to the one of least noise.
        trials: in the order in which they were evaluated.
        sensitivity: of every op, by ``"sqnr"``.
        fp32: what evaluate returned for the float model.
        floor: the least value of evaluate within the budget: that of the float model less ``max_drop``.
        summary: the outcome in one sentence.
    """

    best: QuantizedModule
    chosen: Trial
    front: tuple[FrontPoint, ...]
    trials: tuple[Trial, ...]
    sensitivity: Sensitivity
    fp32: float
    floor: float
    summary: str

    def __str__(self) -> str:
        path = {row.key: row.node for row in self.sensitivity.rows}
        before = [frozenset[str](), *(p.fp32 for p in self.front)]
        front = [
            (
                len(p.fp32),
                f"{p.predicted.milliseconds:.3f}",
                f"{p.predicted.decibels:.1f}",
                "" if p.trial is None else f"{p.trial.value:.6g}",
                ", ".join(name for key, name in path.items() if key in p.fp32 - known),
            )
            for p, known in zip(self.front, before, strict=False)
        ]
        trials = [
            (
                len(t.fp32),
                f"{t.value:.6g}",
                "yes" if t.within else "no",
                "" if t.milliseconds is None else f"{t.milliseconds:.3f}",
                "" if t.ratio is None else f"{t.ratio:.2f}",
                "chosen" if t == self.chosen else "",
            )
            for t in self.trials
        ]
        return "\n".join(
            (
                self.summary,
                "\nPredicted front:",
                _table(front, ("ops in fp32", "predicted ms", "predicted SQNR [dB]", "evaluate", "new in fp32")),
                "\nEvaluated mixes:",
                _table(trials, ("ops in fp32", "evaluate", "within budget", "measured ms", "of fp32's time", "")),
            )
        )

    def plot(self, path: str | os.PathLike[str], ops: int = 30) -> None:
        """Draw the front with the evaluated and the chosen mixes, and the sensitivity of the costliest ops.

        Mixes without noise, such as the model in fp32, are not drawn.

        Args:
            path: ends in ``.png``, ``.svg``, ``.pdf`` or another format of matplotlib.
            ops: how many ops to draw.

        Raises:
            FxquantError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise FxquantError(
                "A plot needs matplotlib: pip install 'fxquant[plot]' (or: pip install matplotlib)."
            ) from error
        figure = Figure(figsize=(12, 5), layout="constrained")
        left, right = figure.subplots(1, 2)
        self._draw_front(left)
        self._draw_sensitivity(right, ops)
        figure.suptitle(self.summary, fontsize="small", wrap=True)
        figure.savefig(path)

    def _draw_front(self, axes: Any) -> None:
        def draw(mixes: Iterable[Trial | FrontPoint], style: str, **options: Any) -> None:
            places = [m.predicted for m in mixes if m.predicted.noise > 0]
            if places:  # else it would be in the legend
                axes.plot([p.milliseconds for p in places], [p.decibels for p in places], style, **options)

        draw(self.front, "o-", mfc="white", label="predicted")
        for within, color in ((True, "tab:green"), (False, "tab:red")):
            label = f"evaluated, {'within' if within else 'below'} the budget"
            draw([t for t in self.trials if t.within == within], "o", color=color, label=label)
        draw([self.chosen], "*", ms=15, color="black", label="chosen")
        axes.set(xlabel="predicted time of the ops that can be int8 [ms]", ylabel="predicted SQNR of the output [dB]")
        axes.set_title("Pareto front")
        if axes.lines:
            axes.legend()

    def _draw_sensitivity(self, axes: Any, ops: int) -> None:
        rows = self.sensitivity.ranked[:ops]
        places = range(len(rows))
        colors = ["tab:red" if row.key in self.chosen.fp32 else "tab:blue" for row in rows]
        axes.barh(places, [row.only if math.isfinite(row.only) else 0.0 for row in rows], color=colors)
        axes.set_yticks(places, [row.node for row in rows], fontsize="x-small")
        axes.invert_yaxis()
        axes.set(xlabel="SQNR of the output with only this op in int8 [dB]")
        axes.set_title("Sensitivity (red: left in fp32)")


def _table(rows: Sequence[Sequence[object]], columns: Sequence[str]) -> str:
    return tabulate(rows, columns, disable_numparse=True, maxcolwidths=70)
