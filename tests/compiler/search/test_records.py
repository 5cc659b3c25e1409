"""Files, plots and workers of a search."""

from __future__ import annotations

import concurrent.futures
import json
import math
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import BudgetWarning, ConfigError, QuantConfig, SearchError
from fxquant.compiler.numerics.metrics import sqnr

from .toys import BUDGET, FRAGILE, Counting, batches, closeness, config, found, model


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
    with pytest.raises(ConfigError, match="belongs to another search"):
        fxquant.search(other, batches(), closeness, BUDGET, config=config(), resume=file)
    with pytest.raises(ConfigError, match="belongs to another search"):
        found(config=QuantConfig(), resume=file)
    with pytest.raises(ConfigError, match=r"evaluate returns 1\.0 for the fp32 model, but returned 0\.0"):
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


@pytest.mark.slow
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
    in_fp32 = QuantConfig(**plain, deterministic=False, overrides=dict.fromkeys(FRAGILE))
    compiled = fxquant.compile(model(), calibration=batches(), config=in_fp32)
    inputs: list[Tensor] = batches(2, seed=50)
    assert sqnr([compiled(x) for x in inputs], [result.best(x) for x in inputs]) > 40
