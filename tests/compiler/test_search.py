"""The search for a mix of int8 and fp32 within an accuracy budget."""

from __future__ import annotations

import concurrent.futures
import copy
import itertools
import json
import math
import multiprocessing
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import BudgetWarning, ConfigError, ModelError, QuantConfig, SearchError, SearchResult
from fxquant.backends.base.backend import Latencies
from fxquant.backends.base.program import FrozenProgram
from fxquant.backends.x86 import X86Backend
from fxquant.backends.x86.codegen import executors
from fxquant.compiler.numerics.metrics import sqnr
from fxquant.compiler.search import evaluator

from .search_toys import FRAGILE, LAYERS, batches, closeness, config, model

BUDGET = 0.05


@pytest.fixture(autouse=True)
def given_speed(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Ops take half the time in int8; a module the less, the more of its ops are: [int8, fp32] ms of a whole."""
    speed = [1.0, 2.0]

    def latencies(self: X86Backend, program: FrozenProgram) -> Latencies:
        names = [n.name for n in program.module.graph.nodes]
        borders = dict.fromkeys(names, 0.01)
        return Latencies(dict.fromkeys(names, 0.5), dict.fromkeys(names, 1.0), borders, borders, {})

    def medians(runs: Sequence[Callable[[], object]], rounds: int, seconds: float) -> list[float]:
        return [_milliseconds(run.func, *speed) for run in runs]  # type: ignore[attr-defined]

    monkeypatch.setattr(X86Backend, "latencies", latencies)
    monkeypatch.setattr(evaluator, "interleaved_medians", medians)
    monkeypatch.setitem(executors.EXECUTORS, "auto", executors.eager)  # tracing takes longer than all else here
    return speed


def int8_is_slower(self: evaluator.Evaluator, modules: Sequence[nn.Module], rounds: int) -> list[float]:
    """All but the last module, the float one, take twice its time."""
    return [2.0] * (len(modules) - 1) + [1.0]


def _milliseconds(module: nn.Module, int8: float, fp32: float) -> float:
    if not isinstance(module, fxquant.QuantizedModule):
        return fp32
    counts = module.report.counts
    share = counts.get("int8", 0) / sum(counts.values())
    return share * int8 + (1 - share) * fp32


def found(evaluate: Callable[[nn.Module], Any] = closeness, max_drop: float = BUDGET, **options: Any) -> SearchResult:
    return fxquant.search(model(), batches(), evaluate, max_drop, **({"config": config()} | options))


class Counting:
    """:func:`closeness`, and how often it was called; it raises ``error`` in call number ``at``."""

    def __init__(self, error: BaseException | None = None, at: int = 0) -> None:
        self.calls, self.error, self.at = 0, error, at

    def __call__(self, module: nn.Module) -> float:
        self.calls += 1
        if self.error is not None and self.calls == self.at:
            raise self.error
        return closeness(module)


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
    with pytest.warns(
        BudgetWarning, match=r"no int8 mix that was tried reaches .* the best of .*larger max_drop"
    ):
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
    def latencies(self: X86Backend, program: FrozenProgram) -> Latencies:
        names = [n.name for n in program.module.graph.nodes]
        fast = dict.fromkeys(names, 0.1)
        return Latencies(dict.fromkeys(names, 1.0), fast, fast, fast, {})

    monkeypatch.setattr(X86Backend, "latencies", latencies)
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


def test_a_budget_that_fp32_misses_gives_the_least_bad() -> None:
    with pytest.warns(BudgetWarning, match="No int8 mix"):
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


def test_without_time_the_result_is_fp32() -> None:
    with pytest.warns(BudgetWarning, match="No int8 mix was tried in time: give it more seconds"):
        result = found(seconds=1e-9)
    assert result.chosen.within and not any(len(t.fp32) < len(LAYERS) for t in result.trials)


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        (lambda m: 1 / 0, "evaluate fails on the fp32 model: ZeroDivisionError"),
        (lambda m: math.nan, "evaluate gave nan for the fp32 model"),
        (lambda m: -math.inf, "evaluate gave -inf for the fp32 model"),
        (lambda m: "good", "evaluate gave 'good' for the fp32 model; it must return a number"),
        (lambda m: torch.zeros(3), r"evaluate gave Tensor of shape \(3,\)"),
        (lambda m: None, "evaluate gave None"),
    ],
)
def test_an_evaluation_that_gives_no_number(evaluate: Callable[[nn.Module], Any], message: str) -> None:
    with pytest.raises(SearchError, match=message):
        found(evaluate)


def test_an_evaluation_that_varies_is_found_on_the_float_model() -> None:
    numbers = iter(range(100))
    with pytest.raises(SearchError, match=r"gave 0\.0 and then 1\.0 for the same fp32 model"):
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
        ({"resume": "x" * 300}, "cannot be kept in x"),
        ({"resume": "/no/such/folder/file"}, "cannot be kept in /no/such/folder/file"),
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
        ({"evaluate": closeness, "max_drop": 0.1, "backend": "reference"}, "'reference' measures none: use 'x86'"),
    ],
)
def test_compile_refuses_what_does_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fxquant.compile(model(), **({"calibration": batches()} | options))


def test_a_search_that_was_stopped_goes_on_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "search.json"
    whole = Counting()
    expected = found(whole)
    stopped = Counting(KeyboardInterrupt(), at=5)
    with pytest.raises(KeyboardInterrupt):
        found(stopped, resume=file)
    rest = Counting()
    result = found(rest, resume=file)
    assert result.chosen.fp32 == expected.chosen.fp32
    assert rest.calls == 2 + whole.calls - 4  # twice the float model, and what was not evaluated before
    again = Counting()
    assert found(again, resume=file).chosen == result.chosen
    assert again.calls == 3  # twice the float model, and what is returned


def test_one_file_serves_several_budgets(tmp_path: Path) -> None:
    file = tmp_path / "search.json"
    found(resume=file)
    evaluate = Counting()
    assert not found(evaluate, max_drop=1e6, resume=file).chosen.fp32 and evaluate.calls == 3


def test_the_file_of_another_search_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "search.json"
    found(resume=file)
    kept = file.read_text()
    other = model()
    with torch.no_grad():
        other.get_parameter("0.weight")[0, 0, 0, 0] += 1
    with pytest.raises(ConfigError, match="is of another search"):
        fxquant.search(other, batches(), closeness, BUDGET, config=config(), resume=file)
    with pytest.raises(ConfigError, match="is of another search"):
        found(config=QuantConfig(), resume=file)
    with pytest.raises(ConfigError, match=r"evaluate gives 1\.0 for the fp32 model, and gave 0\.0"):
        found(lambda m: closeness(m) + 1, resume=file)
    assert json.loads(file.read_text()) == json.loads(kept)
    for text in ("my notes", "{}", '{"format": "fxquant search 1"}'):
        file.write_text(text)
        with pytest.raises(ConfigError, match="is not a file of a search"):
            found(resume=file)
        assert file.read_text() == text


def test_a_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found().plot(tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


def test_the_plot_has_what_was_tried_and_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure
    drawn: dict[str, set[tuple[float, float]]] = {}

    def kept(self: Any, path: object) -> None:
        drawn.update((line.get_label(), set(zip(*line.get_data(), strict=True))) for line in self.axes[0].lines)

    monkeypatch.setattr(figure, "savefig", kept)
    result = found()
    result.plot("front.png")
    chosen = result.chosen.predicted
    assert drawn["chosen"] == {(chosen.milliseconds, chosen.decibels)} <= drawn["evaluated, within the budget"]
    assert len(drawn["evaluated, below the budget"]) == sum(not t.within for t in result.trials)
    with pytest.warns(BudgetWarning):
        plain = found(max_drop=-1e-9)
    drawn.clear()
    plain.plot("front.png")
    assert "chosen" not in drawn  # fp32 has no noise, so that it has no place


def test_what_is_predicted_of_a_mix_that_was_tried_is_that_of_the_front() -> None:
    result = found()
    tried = [point for point in result.front if point.trial is not None]
    assert tried and all(p.trial is not None and p.predicted == p.trial.predicted for p in tried)
    assert result.front[-1].predicted.decibels == math.inf
    ordered = [(p.predicted.milliseconds, -p.predicted.decibels) for p in result.front]
    assert [ms for ms, _ in ordered] == sorted(ms for ms, _ in ordered)
    assert [noise for _, noise in ordered] == sorted((noise for _, noise in ordered), reverse=True)


def test_threads_find_the_same() -> None:
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        assert found(executor=pool).chosen.fp32 == found().chosen.fp32


def test_processes_find_the_same() -> None:
    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        result = found(executor=pool)
    assert result.chosen.fp32 == found().chosen.fp32 and closeness(result.best) == result.chosen.value


def test_dask_finds_the_same() -> None:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        assert found(executor=client.get_executor()).chosen.fp32 == found().chosen.fp32


def test_what_cannot_be_sent_to_workers_is_refused() -> None:
    lock = multiprocessing.Lock()
    with concurrent.futures.ThreadPoolExecutor(1) as pool, pytest.raises(ConfigError, match="cannot be sent"):
        found(lambda module: closeness(module) if lock else 0.0, executor=pool)


def _fails_on_int8(module: nn.Module) -> float:
    if isinstance(module, fxquant.QuantizedModule):
        raise ValueError("no float module")
    return 0.0


def test_an_error_in_a_worker_is_told() -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool, pytest.raises(SearchError, match="no float module"):
        found(_fails_on_int8, executor=pool)


def test_a_mix_is_what_a_compilation_with_overrides_gives() -> None:
    """Without passes that look at other layers: those had all of them in int8 when they looked."""
    plain: dict[str, Any] = dict.fromkeys(("smooth", "equalize", "absorb_bias", "correct_bias"), False)
    few_bits: dict[Any, Any] = dict.fromkeys(FRAGILE, QuantConfig(weight_bits=2, **plain))
    result = found(config=QuantConfig(**plain, overrides=few_bits))
    in_fp32 = QuantConfig(**plain, overrides=dict.fromkeys(FRAGILE))
    compiled = fxquant.compile(model(), calibration=batches(), config=in_fp32)
    inputs: list[Tensor] = batches(2, seed=50)
    assert sqnr([compiled(x) for x in inputs], [result.best(x) for x in inputs]) > 40
