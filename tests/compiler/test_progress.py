"""What long calls show, and where."""

from __future__ import annotations

import logging
from typing import Any

import pytest

import fxquant
from fxquant import QuantConfig
from fxquant.compiler.core.progress import progress, stage, verbosity

from .toys import data, small

STAGES = ("capture", "calibrate", "place", "freeze", "plan", "verify")
ALL = QuantConfig(equalize=True, smooth=True, correct_bias=True, rounding="learned", rounding_seconds=1.0)
PASSES = ("equalize", "smooth", "channel statistics", "learn rounding", "correct biases")


def compiled(**options: Any) -> fxquant.QuantizedModule:
    return fxquant.compile(small(), calibration=data(), config=ALL, **options)


def test_verbose_shows_every_stage_and_the_decisions(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.getLogger("fxquant"), "propagate", False)  # pytest handles the log of a test otherwise
    compiled(verbose=True)
    shown = capsys.readouterr()
    assert [name for name in (*STAGES, *PASSES) if f"{name}: " not in shown.err] == []
    assert "fxquant: fold_batchnorm: 1" in shown.err
    assert shown.out == ""


@pytest.mark.parametrize("verbose", [None, False])
def test_without_a_terminal_nothing_is_shown(verbose: bool | None, capsys: pytest.CaptureFixture[str]) -> None:
    compiled(verbose=verbose)
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_bars_show_unless_verbose_is_false(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with verbosity(False):
        assert list(progress(range(3), "hidden")) == [0, 1, 2]
    with stage("shown"):
        pass
    shown = capsys.readouterr().err
    assert "shown: " in shown and "hidden" not in shown


def test_decisions_go_to_the_log_without_verbose(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="fxquant"):
        compiled()
    texts = [record.getMessage() for record in caplog.records if record.name == "fxquant"]
    assert "fold_batchnorm: 1" in texts and any(text.startswith("llvm: ") for text in texts)


def test_the_logger_is_left_as_it_was() -> None:
    logger = logging.getLogger("fxquant")
    before = (logger.level, list(logger.handlers))
    with pytest.raises(fxquant.CalibrationError):
        fxquant.compile(small(), calibration=[], verbose=True)
    assert (logger.level, list(logger.handlers)) == before


def test_preparing_for_training_shows_its_stages(capsys: pytest.CaptureFixture[str]) -> None:
    fxquant.prepare(small(), scheme="qat", calibration=data(), verbose=True)
    shown = capsys.readouterr().err
    assert all(f"{name}: " in shown for name in ("capture", "calibrate", "attach_layers", "simulate"))


def test_dynamic_layers_show_their_stages(capsys: pytest.CaptureFixture[str]) -> None:
    fxquant.compile(small(), scheme="dynamic", verbose=True)
    assert "capture: " in capsys.readouterr().err
