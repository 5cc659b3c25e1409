"""What a search found, as data, tables and a plot."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from .errors import FxquantError
from .module import QuantizedModule
from .sensitivity import Sensitivity


@dataclass(frozen=True)
class Prediction:
    """What is predicted of a mix.

    Attributes:
        milliseconds: without the ops that are fp32 in every mix.
        noise: as a share of the output's power.
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
        fp32: the keys of its ops in fp32 that could be int8, as of :attr:`UnitSensitivity.key`.
        predicted: what was expected of it.
        value: what evaluate gave.
        within: whether that is within the budget.
        milliseconds: measured on the first calibration batch; None where it was not within the budget, or not reached.
        ratio: of its time to that of the float model in the same run.
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
        trial: None where it was not tried.
    """

    fp32: frozenset[str]
    predicted: Prediction
    trial: Trial | None


@dataclass(frozen=True)
class SearchResult:
    """What :func:`fxquant.search` returns; print it for the tables.

    Attributes:
        best: the module to use.
        chosen: the mix that it is.
        front: from the fastest mix to that of the least noise, as predicted.
        trials: in the order in which they were evaluated.
        sensitivity: of every op, by ``"sqnr"``.
        fp32: what evaluate gave for the float model.
        floor: the budget: what evaluate must give at least.
        summary: the outcome in a sentence.
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
        """Draw the front, what was evaluated and chosen, and the noise that each of the costliest ``ops`` adds.

        Mixes without noise, as the model in fp32, are not drawn.

        ``path`` ends in ``.png``, ``.svg``, ``.pdf`` or another of matplotlib's formats.

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
            if places:  # what is not drawn has no place in the legend
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
