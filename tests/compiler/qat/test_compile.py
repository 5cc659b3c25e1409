"""compile() with scheme='qat', and what it refuses."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import CalibrationError, ConfigError, QATModule, QuantConfig, StateError, TrainingError

from ..toys import Small, data, images, small, sqnr
from .toys import optimizer_of, prepared, step


def test_compile_trains_in_between() -> None:
    def fit(model: QATModule) -> None:
        model.train()
        optimizer = optimizer_of(model)
        for number in range(3):
            step(model, optimizer, number)

    model = small()
    given = data()
    done = fxquant.compile(model, scheme="qat", calibration=given, train=fit, backend="reference")
    by_hand = prepared(model, calibration=given)
    fit(by_hand)
    x = images()
    assert torch.equal(done(x), fxquant.convert(by_hand)(x))


def test_compile_takes_the_module_that_training_returns() -> None:
    best: list[QATModule] = []

    def fit(model: QATModule) -> QATModule:
        best.append(copy.deepcopy(model))
        step(model.train(), optimizer_of(model))
        return best[0]

    done = fxquant.compile(small(), scheme="qat", calibration=data(), train=fit, backend="reference")
    x = images()
    assert torch.equal(done(x), fxquant.convert(best[0])(x))


def test_without_training_it_is_static_quantization_without_its_passes() -> None:
    off: dict[str, Any] = dict.fromkeys(("equalize", "smooth", "absorb_bias", "correct_bias"), False)
    model, x = small(), images(4)
    static = fxquant.compile(model, calibration=data(), backend="reference", config=QuantConfig(**off))
    done = fxquant.convert(prepared(model))
    assert sqnr(static(x), done(x)) > 40
    assert [(r.node, r.op, r.precision) for r in static.report.rows] == [
        (r.node, r.op, r.precision) for r in done.report.rows
    ]


def test_overrides_hold() -> None:
    config = QuantConfig(overrides={"head": None, "stem": QuantConfig(weight_bits=2)})
    q = prepared(config=config)
    assert "fake_quants.head_weight.scale" not in q.state_dict()
    assert (q.fake_quants.get_submodule("stem_weight").qmax) == 1
    rows = {row.node: row for row in fxquant.convert(q).report.rows}
    assert "weights of 2 bits" in rows["stem"].reason
    assert rows["head"].precision == "fp32" and "override 'head'" in rows["head"].reason


def test_a_layer_with_dynamic_weights_trains_in_fp32_and_is_swapped_in_the_end() -> None:
    q = prepared(config=QuantConfig(overrides={"head": "dynamic"}), backend="x86").train()
    step(q, optimizer_of(q))
    rows = {row.node: row for row in fxquant.convert(q).report.rows}
    assert rows["head"].precision == "int8 dynamic" and rows["stem"].precision == "int8"


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"calibration": None}, ConfigError, "needs calibration="),
        ({"calibration": []}, CalibrationError, "no batch"),
        ({"calibration": [torch.ones(2, 3)]}, CalibrationError, r"forward\(\) fails on calibration batch 0"),
        ({"calibration_batches": 0}, ConfigError, "calibration_batches"),
        ({"config": QuantConfig(equalize=True)}, ConfigError, r"equalize=True is for scheme 'static'"),
        ({"config": QuantConfig(overrides={"stem": QuantConfig(correct_bias=True)})}, ConfigError, "correct_bias"),
        ({"config": QuantConfig(rounding="learned")}, ConfigError, r"rounding='learned' is for scheme 'static'"),
    ],
)
def test_what_cannot_be_prepared_says_why(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        prepared(**options)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"after": 0.5}, "give both"),
        ({"steps": 5}, "give both"),
        ({"after": 50, "steps": 5}, "from 0 to 1"),
        ({"after": 0.5, "steps": 0}, "positive int"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(arguments: dict[str, Any], match: str) -> None:
    q = prepared()
    for freeze in (q.freeze_observers, q.freeze_batchnorm):
        with pytest.raises(ConfigError, match=match):
            freeze(**arguments)


def test_train_is_for_this_scheme_and_needed_there() -> None:
    with pytest.raises(ConfigError, match="needs train="):
        fxquant.compile(small(), scheme="qat", calibration=data())
    with pytest.raises(ConfigError, match="takes no train="):
        fxquant.compile(small(), calibration=data(), train=print)


def test_what_train_returns_is_not_ignored() -> None:
    for wrong in (5, nn.Linear(2, 2)):
        with pytest.raises(ConfigError, match="must return None or a QATModule"):
            fxquant.compile(small(), scheme="qat", calibration=data(), train=lambda q, wrong=wrong: wrong)  # type: ignore[misc]
    with pytest.raises(ConfigError, match="must be a function"):
        fxquant.compile(small(), scheme="qat", calibration=data(), train="x")  # type: ignore[arg-type]


def test_what_is_in_training_already_is_not_prepared_again() -> None:
    for model in (prepared(), nn.Sequential(prepared())):
        with pytest.raises(fxquant.ModelError, match=r"in quantization-aware training already"):
            fxquant.compile(model, scheme="dynamic")


def test_converting_a_wrapper_or_a_diverged_model_says_what_to_do() -> None:
    q = prepared()
    with pytest.raises(StateError, match=r"got DataParallel\. Pass its \.module"):
        fxquant.convert(nn.DataParallel(q))  # type: ignore[arg-type]
    with torch.no_grad():
        q.get_parameter("stem.weight").fill_(torch.nan)
    with pytest.raises(fxquant.ModelError, match="layer 'stem' holds NaN or inf"):
        fxquant.convert(q)


def test_a_name_of_ours_in_the_model_is_refused() -> None:
    model = small()
    model.fake_quants = nn.ReLU()
    with pytest.raises(ConfigError, match="Rename it"):
        prepared(model)


def test_attention_is_not_taken_apart() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.out = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.attention(x, x, x)[0]
            logits: Tensor = self.out(x)
            return logits

    config = QuantConfig(overrides={"attention": "dynamic"})
    with pytest.raises(ConfigError, match="would lose their names"):
        prepared(Attends(), calibration=[torch.randn(2, 3, 8)], config=config)


def test_diverged_training_stops_with_the_layer() -> None:
    q = prepared().train()
    with torch.no_grad():
        q.get_parameter("stem.weight").fill_(torch.nan)
    with pytest.raises(TrainingError, match="NaN or inf in the output of 'act'"):
        q(images())


def test_it_cannot_be_pickled() -> None:
    with pytest.raises(StateError, match="Save its state_dict"):
        pickle.dumps(prepared())


def test_shapes_of_the_call_are_free() -> None:
    q = prepared(Small())
    assert q(images(7)).shape == (7, 5)
