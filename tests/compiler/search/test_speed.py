"""What the search returns where int8 is not faster."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import BudgetWarning, QuantConfig
from fxquant.compiler.search import evaluator

from .toys import LAYERS, batches, closeness, found, model


def test_a_budget_that_fp32_misses_gives_the_least_bad() -> None:
    with pytest.warns(BudgetWarning, match="no int8 mix"):
        result = found(max_drop=-0.5)
    assert not result.chosen.within and result.chosen.value == max(0.0, *(t.value for t in result.trials))


def test_nothing_slower_than_the_float_model_is_returned(given_speed: list[float]) -> None:
    given_speed[:] = [3.0, 2.0]
    with pytest.warns(BudgetWarning, match="none was measured to be faster"):
        result = found()
    assert result.best.report.counts == {"fp32": len(LAYERS)} and result.chosen.ratio == 1.0
    given_speed[:] = [3.0, 2.0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert found(strict=True).chosen.within  # a budget that is met is no error


def test_the_float_model_itself_is_returned_where_even_its_lowered_form_is_slower(
    given_speed: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        evaluator.Evaluator, "measured", lambda self, modules, rounds: [2.0] * (len(modules) - 1) + [1.0]
    )
    with pytest.warns(BudgetWarning):
        result = found()
    (x,) = batches(1)
    assert torch.equal(result.best(x), model()(x)) and result.chosen.value == 0.0


def test_of_mixes_about_as_fast_one_that_is_slower_than_fp32_does_not_hide_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Within a percent the one with most int8 comes first, though it be slower than the float model."""

    def measured(self: evaluator.Evaluator, modules: Sequence[nn.Module], rounds: int) -> list[float]:
        int8 = [m.report.counts.get("int8", 0) if isinstance(m, fxquant.QuantizedModule) else None for m in modules]
        most = max(n for n in int8 if n is not None)
        return [1.0 if n is None else 1.001 if n == most else 0.999 if n else 2.0 for n in int8]

    monkeypatch.setattr(evaluator.Evaluator, "measured", measured)
    result = found()
    assert result.chosen.ratio == pytest.approx(0.999) and "int8" in result.best.report.counts


def test_what_is_returned_is_the_very_module_that_was_evaluated() -> None:
    evaluated: list[nn.Module] = []

    def evaluate(module: nn.Module) -> float:
        evaluated.append(module)
        return closeness(module)

    everything = QuantConfig(weight_bits=2)
    cases: tuple[dict[str, Any], ...] = ({}, {"config": QuantConfig()}, {"config": everything, "max_drop": 1e-3})
    for options in cases:
        evaluated.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BudgetWarning)
            result = found(evaluate, **options)
        runs = [m._compiled.run for m in evaluated if isinstance(m, fxquant.QuantizedModule) and m._compiled]
        assert result.best._compiled is not None and result.best._compiled.run in runs


def test_a_model_that_changes_its_input_is_measured_on_copies() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model()

        def forward(self, x: Tensor) -> Tensor:
            x.sub_(0.5).div_(0.5)
            y: Tensor = self.net(x)
            return y

    def evaluate(module: nn.Module) -> float:
        return closeness(lambda x: module(x.clone() * 0.5 + 0.5))  # type: ignore[arg-type]

    given = batches()
    result = fxquant.search(InPlace(), [x.clone() for x in given], evaluate, 0.05)
    assert result.chosen.within and result.best.report.counts.get("int8", 0) == len(LAYERS)
