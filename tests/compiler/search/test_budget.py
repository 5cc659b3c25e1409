"""The search for a mix of int8 and fp32 within an accuracy budget."""

from __future__ import annotations

import concurrent.futures
import copy
import math
import multiprocessing
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

import fxquant
from fxquant import BudgetWarning, ConfigError, QuantConfig, SearchError
from fxquant.backends.base.backend import Latencies
from fxquant.backends.base.program import FrozenProgram
from fxquant.backends.llvm import LLVMBackend
from fxquant.compiler.search import evaluator

from .toys import BUDGET, FRAGILE, LAYERS, Counting, batches, closeness, config, found, model


def int8_is_slower(self: evaluator.Evaluator, modules: Sequence[nn.Module], rounds: int) -> list[float]:
    """All but the last module, the float one, take twice its time."""
    return [2.0] * (len(modules) - 1) + [1.0]


def test_the_planted_layers_and_no_others_stay_in_fp32() -> None:
    result = found()
    assert result.chosen.fp32 == {f"_{path}" for path in FRAGILE}
    rows = {row.node: row for row in result.best.report.rows}
    assert {path for path in LAYERS if rows[path].precision == "fp32"} == set(FRAGILE)
    assert all("for accuracy" in rows[path].reason for path in FRAGILE)


def test_what_is_returned_is_what_was_evaluated_and_within_the_budget() -> None:
    result = found()
    assert closeness(result.best) == result.chosen.value >= result.floor == -BUDGET
    assert result.chosen in result.trials and result.chosen.within
    assert result.chosen.ratio is not None and result.chosen.ratio < 1
    assert result.summary in str(result) and result.summary in str(result.best)


def test_a_budget_that_int8_meets_costs_one_evaluation_of_a_mix() -> None:
    evaluate = Counting()
    result = found(evaluate, config=QuantConfig())
    assert not result.chosen.fp32 and evaluate.calls == 3 and len(result.trials) == 1


def test_the_model_and_random_numbers_are_left_alone() -> None:
    net = model().train()
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()

    def evaluate(module: nn.Module) -> float:
        assert not module.training
        torch.rand(3)
        return closeness(module)

    fxquant.search(net, batches(), evaluate, BUDGET, config=config())
    assert net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_an_evaluation_that_draws_is_given_the_same_numbers_each_time() -> None:
    drawn: list[float] = []

    def evaluate(module: nn.Module) -> float:
        drawn.append(float(torch.rand(())))
        return closeness(module) + drawn[-1]

    first = found(evaluate, seed=1)
    assert len(set(drawn)) == 1
    assert found(evaluate, seed=2).chosen.fp32 == first.chosen.fp32 and len(set(drawn)) == 2


def test_where_no_int8_is_within_the_budget_the_result_is_fp32_and_says_so() -> None:
    everything = QuantConfig(weight_bits=2)
    with pytest.warns(BudgetWarning, match=r"no int8 mix that was tried reaches .* the best of .*larger max_drop"):
        result = found(config=everything, max_drop=1e-9)
    assert result.best.report.counts == {"fp32": len(LAYERS)} and result.chosen.within
    (x,) = batches(1)
    assert torch.allclose(result.best(x), model()(x), atol=1e-5)
    with pytest.raises(SearchError, match="no int8 mix that was tried reaches"):
        found(config=everything, max_drop=1e-9, strict=True)


def test_nan_for_all_mixes_is_told() -> None:
    with pytest.warns(BudgetWarning, match="it is NaN for all"):
        found(lambda module: math.nan if isinstance(module, fxquant.QuantizedModule) else 0.0)


def test_where_int8_is_never_faster_no_budget_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    def latencies(self: LLVMBackend, program: FrozenProgram) -> Latencies:
        names = [n.name for n in program.module.graph.nodes]
        fast = dict.fromkeys(names, 0.1)
        return Latencies(dict.fromkeys(names, 1.0), fast, fast, fast, {})

    monkeypatch.setattr(LLVMBackend, "latencies", latencies)
    with pytest.warns(BudgetWarning, match=r"int8 makes no op faster here"):
        result = found(strict=True)
    assert result.best.report.counts == {"fp32": len(LAYERS)}


@pytest.mark.parametrize("lowered", (2.0, 1.0))
def test_what_evaluate_does_to_the_float_model_stays_there(lowered: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs in the end, the model lowered in fp32 or as it is, does what it did in eval mode."""

    def measured(self: evaluator.Evaluator, modules: Sequence[nn.Module], rounds: int) -> list[float]:
        return [2.0] * (len(modules) - 2) + [lowered, 1.0]

    monkeypatch.setattr(evaluator.Evaluator, "measured", measured)
    net = nn.Sequential(*model(), nn.BatchNorm2d(8), nn.Dropout(0.9)).eval()
    (x,) = batches(1)
    exact = net(x)

    def evaluate(module: nn.Module) -> float:
        module.eval()
        with torch.no_grad():
            error = float((module(x) - exact).square().sum())
        module.train()
        return -error

    with pytest.warns(BudgetWarning):
        result = fxquant.search(net, batches(), evaluate, 1e9)
    assert evaluate(result.best) == pytest.approx(result.chosen.value, abs=1e-6)
    assert torch.allclose(result.best(x), exact, atol=1e-5)
    assert all("faster" in row.reason for row in result.best.report.rows if row.op.startswith("conv"))


def test_the_report_of_the_float_model_has_no_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        evaluator.Evaluator, "measured", lambda self, modules, rounds: [2.0] * (len(modules) - 1) + [1.0]
    )
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
    config = QuantConfig(overrides={"2": "fp16"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BudgetWarning)
        result = fxquant.search(net, [torch.rand(4, 8)], lambda module: 0.0, 0.0, config=config)
    report = result.best.report
    assert set(report.counts) == {"fp32"} and report.compiled_bytes == report.fp32_bytes
    assert "the float model itself" in report.rows[-1].reason


def test_processes_that_are_forked_are_refused() -> None:
    pool = concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))
    with pool, pytest.raises(ConfigError, match="'spawn'"):
        found(executor=pool)


def test_a_pool_that_is_shut_down_is_told() -> None:
    pool = concurrent.futures.ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(SearchError, match=r"The executor failed: .*after shutdown"):
        found(executor=pool)


def test_a_budget_may_be_a_number_of_numpy() -> None:
    assert found(max_drop=np.float32(BUDGET)).chosen.within  # type: ignore[arg-type]
