"""Every example runs, and the demo's promise holds."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fxquant.compiler.cli import demo
from fxquant.compiler.cli import main as cli
from fxquant.compiler.core.errors import FxquantError

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_quickstart_keeps_accuracy(capsys: pytest.CaptureFixture[str]) -> None:
    before, after = load("quickstart").main(epochs=5)
    assert before > 93
    assert after >= before - 0.5
    assert "left in fp32 by override '13'" in capsys.readouterr().out


def test_every_example_has_a_test() -> None:
    source = Path(__file__).read_text()
    assert all(f'load("{path.stem}")' in source for path in EXAMPLES.glob("*.py"))


def test_demo_without_scikit_learn_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(FxquantError, match="pip install"):
        demo.load_digits()


def test_command_line_reports_errors_of_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert cli.main(["demo"]) == 1
    assert "scikit-learn" in capsys.readouterr().err


@pytest.mark.slow
def test_training_wins_back_what_three_bits_lose(capsys: pytest.CaptureFixture[str]) -> None:
    found = load("qat").main(epochs=4, fine_tuning=3)
    for row in found.values():
        assert row["int8 = simulated"] >= 99
        assert row["qat"] > row["fp32"] - 1.5
    assert found[3]["rounding alone"] < found[3]["fp32"] - 10
    assert "W3A8" in capsys.readouterr().out


def test_char_lstm_loses_next_to_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    bits = load("char_lstm").main(seconds=600, steps=150, hidden=128, held_out=4000)
    # Guessing by the frequency of characters would take about 4.6 bits: it has learned something.
    assert bits["fp32"] < 4.2
    assert abs(bits["int8 dynamic"] - bits["fp32"]) < 0.02
    assert abs(bits["fp16"] - bits["fp32"]) < 0.001
    assert "bits per character" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::fxquant.BudgetWarning")
def test_mixed_precision() -> None:
    result = load("mixed_precision").main(epochs=5)
    assert result.chosen.within and result.chosen.value >= result.fp32 - 0.5
    assert result.summary in str(result.best)
