"""What the search makes of evaluate functions and arguments."""

from __future__ import annotations

import concurrent.futures
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fxquant
from fxquant import BudgetWarning, ConfigError, ModelError, QuantConfig, SearchError

from .toys import BUDGET, FRAGILE, LAYERS, batches, closeness, config, found, model


def test_without_time_the_result_is_fp32() -> None:
    with pytest.warns(BudgetWarning, match="No int8 mix was tried in time: give it more seconds"):
        result = found(seconds=1e-9)
    assert result.chosen.within and not any(len(t.fp32) < len(LAYERS) for t in result.trials)


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        (lambda m: 1 / 0, "evaluate fails on the fp32 model: ZeroDivisionError"),
        (lambda m: math.nan, "evaluate returned nan for the fp32 model"),
        (lambda m: -math.inf, "evaluate returned -inf for the fp32 model"),
        (lambda m: "good", "evaluate returned 'good' for the fp32 model; it must return a number"),
        (lambda m: torch.zeros(3), r"evaluate returned Tensor of shape \(3,\)"),
        (lambda m: None, "evaluate returned None"),
    ],
)
def test_an_evaluation_that_gives_no_number(evaluate: Callable[[nn.Module], Any], message: str) -> None:
    with pytest.raises(SearchError, match=message):
        found(evaluate)


def test_an_evaluation_that_varies_is_found_on_the_float_model() -> None:
    numbers = iter(range(100))
    with pytest.raises(SearchError, match=r"returned 0\.0 and then 1\.0 for the same fp32 model"):
        found(lambda module: next(numbers))


def test_an_evaluation_that_fails_on_int8_names_the_mix() -> None:
    def evaluate(module: nn.Module) -> float:
        return float(module[0].weight.sum())  # type: ignore[index]

    with pytest.raises(SearchError, match="evaluate fails on a mix with 0 ops in fp32: TypeError"):
        found(evaluate)


def test_the_rounding_of_fp32_is_no_loss() -> None:
    """Accuracies summed up in fp32 differ in the eighth digit."""
    calls = itertools.count()
    result = found(lambda module: 0.98390341 if next(calls) < 2 else 0.98390340, max_drop=0.0)
    assert result.chosen.within and len(result.trials) == 1


def test_nan_on_a_mix_is_not_within_any_budget() -> None:
    def evaluate(module: nn.Module) -> float:
        value = closeness(module)
        return math.nan if value < -BUDGET else value

    result = found(evaluate)
    assert result.chosen.fp32 == {f"_{path}" for path in FRAGILE}
    assert any(math.isnan(t.value) and not t.within for t in result.trials)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_drop": math.nan}, "max_drop is nan"),
        ({"max_drop": "1%"}, "max_drop is '1%'"),
        ({"max_drop": True}, "max_drop is True"),
        ({"seconds": 0}, "seconds is 0"),
        ({"calibration_batches": 0}, "calibration_batches is 0"),
        ({"executor": "eager"}, "executor must be an instance of concurrent.futures.Executor, got str"),
        ({"executor": concurrent.futures.ThreadPoolExecutor}, r"instance of .*Executor, got ThreadPoolExecutor"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": "a"}, "seed is 'a'"),
        ({"resume": 3}, "resume is 3"),
        ({"resume": "x" * 300}, "cannot be saved to x"),
        ({"resume": "/no/such/folder/file"}, "cannot be saved to /no/such/folder/file"),
        ({"evaluate": 3}, "evaluate must be a function of a module, got int"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        found(**options)


def test_a_model_without_anything_to_quantize() -> None:
    with pytest.raises(ModelError, match="nothing to quantize"):
        fxquant.search(nn.Softmax(1), [torch.rand(2, 3)], lambda m: 0.0, 0.1)


def test_compile_searches_when_it_is_given_a_budget() -> None:
    q = fxquant.compile(model(), calibration=batches(), config=config(), evaluate=closeness, max_drop=BUDGET)
    assert closeness(q) >= -BUDGET and q.report.counts == {"int8": 4, "fp32": 2}
    assert "search: evaluate" in str(q).splitlines()[0]
    two_bits = QuantConfig(weight_bits=2)
    with pytest.raises(SearchError):
        fxquant.compile(
            model(),
            calibration=batches(),
            config=two_bits,
            evaluate=closeness,
            max_drop=0.0,
            strict=True,
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evaluate": closeness}, "evaluate= needs max_drop="),
        ({"max_drop": 0.1}, "max_drop= goes with evaluate="),
        ({"strict": True}, "strict= goes with evaluate="),
        ({"evaluate": closeness, "max_drop": 0.1, "calibration": None}, "evaluate= needs calibration="),
        ({"evaluate": closeness, "max_drop": 0.1, "scheme": "dynamic"}, "goes with scheme 'static', not 'dynamic'"),
        ({"evaluate": closeness, "max_drop": 0.1, "backend": "reference"}, "'reference' measures none. Use 'auto'"),
    ],
)
def test_compile_refuses_what_does_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fxquant.compile(model(), **({"calibration": batches()} | options))
