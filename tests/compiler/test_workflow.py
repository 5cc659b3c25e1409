"""compile, prepare, convert, freeze: states, copies, and that all ways lead to the same result."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import fxquant
from fxquant import StateError
from tests.models import batches, settled

from .toys import compiled, data, images, row, small, sqnr


def test_lazy_use_equals_calibration_at_once() -> None:
    model, given = small(), data()
    # Smoothing looks at what is there when it begins: one call, or the first batches.
    config = fxquant.QuantConfig(smooth=False)
    q = fxquant.compile(model, backend="reference", config=config)
    assert not q.frozen and "calibrating" in repr(q)
    for x in given:
        assert torch.allclose(q(x), model(x), atol=1e-5), "fp32 until frozen"
    assert q.freeze() is q and q.frozen
    x = images()
    assert torch.equal(q(x), compiled(model, given, config=config)(x))


def test_prepare_and_convert_equal_compile() -> None:
    model, given = small(), data()
    prepared = fxquant.prepare(model, backend="reference")
    for x in given:
        prepared(x)
    x = images()
    assert torch.equal(fxquant.convert(prepared)(x), compiled(model, given)(x))


def test_both_backends_agree() -> None:
    model, given = small(), data()
    x = images(4)
    reference, x86 = compiled(model, given), fxquant.compile(model, calibration=given)
    assert sqnr(reference(x), x86(x)) > 30
    assert sqnr(model(x), x86(x)) > 25


def test_any_batch_size() -> None:
    model = small()
    q = fxquant.compile(model, calibration=data())
    for size in (1, 3, 7):
        x = images(size)
        assert q(x).shape == (size, 5)
        assert sqnr(model(x), q(x)) > 25


def test_no_gradients() -> None:
    q = compiled(small())
    assert not q(images().requires_grad_()).requires_grad


def test_calls_leave_the_input_alone() -> None:
    x = images()
    before = x.clone()
    compiled(small())(x)
    assert torch.equal(x, before)


def test_freeze_before_data() -> None:
    with pytest.raises(StateError, match="seen no data"):
        fxquant.compile(small(), backend="reference").freeze()
    with pytest.raises(StateError, match="seen no data"):
        fxquant.convert(fxquant.prepare(small(), backend="reference"))


def test_freeze_after_nothing_but_a_failed_call() -> None:
    q = fxquant.compile(small(), backend="reference")
    with pytest.raises(Exception):  # noqa: B017
        q(images(size=12))
    with pytest.raises(StateError, match="seen no data"):
        q.freeze()


def test_a_failed_call_does_not_spoil_later_ones() -> None:
    q = fxquant.compile(small(), backend="reference")
    with pytest.raises(Exception):  # noqa: B017
        q(images(size=12))
    for x in data():
        q(x)
    assert q.freeze()(images()).shape == (2, 5)


def test_freeze_twice() -> None:
    q = compiled(small())
    with pytest.raises(StateError, match="compiled already"):
        q.freeze()


def test_convert_uses_its_argument_up() -> None:
    prepared = fxquant.prepare(small(), backend="reference")
    prepared(images())
    fxquant.convert(prepared)
    with pytest.raises(StateError):
        fxquant.convert(prepared)


def test_calling_what_was_used_up_gives_no_surprise() -> None:
    model = small()
    prepared = fxquant.prepare(model, backend="reference")
    prepared(images())
    q = fxquant.convert(prepared)
    x = images()
    before = q(x)
    with pytest.raises(StateError):
        prepared(10 * images())
    assert torch.equal(q(x), before)


@pytest.mark.parametrize("given", [None, 3, small()])
def test_convert_of_something_else(given: Any) -> None:
    with pytest.raises(StateError, match="convert takes a module that prepare returned"):
        fxquant.convert(given)


def test_report_before_freeze() -> None:
    q = fxquant.compile(small(), backend="reference")
    with pytest.raises(StateError, match=r"no report.*freeze\(\)"):
        _ = q.report


def test_pickle_is_refused() -> None:
    with pytest.raises(StateError, match="cannot be pickled"):
        pickle.dumps(compiled(small()))


@pytest.mark.parametrize("backend", ["reference", "x86"])
def test_deepcopy_agrees(backend: str) -> None:
    q = compiled(small(), backend=backend)
    x = images()
    twin = copy.deepcopy(q)
    assert twin is not q and twin.frozen
    assert torch.equal(twin(x), q(x))
    assert str(twin.report) == str(q.report)


def test_deepcopy_while_calibrating_is_refused() -> None:
    with pytest.raises(StateError, match="still calibrates"):
        copy.deepcopy(fxquant.compile(small(), backend="reference"))


def test_compiling_again_gives_the_same() -> None:
    model, given, x = small(), data(), images()
    assert torch.equal(compiled(model, given)(x), compiled(model, given)(x))


def test_snapshots_are_of_every_step() -> None:
    q = compiled(small(), snapshots=True)
    assert list(q.snapshots) == [
        "capture",
        "fold_batchnorm",
        "eliminate_noops",
        "smooth",
        "place",
        "choose_ranges",
        "freeze",
        "learn_rounding",
        "correct_bias",
        "lower",
    ]
    assert "bn" in q.snapshots["capture"] and "quantize" in q.snapshots["freeze"]
    assert compiled(small()).snapshots == {}


def test_report_adds_up() -> None:
    model = small()
    q = compiled(model, backend="x86")
    report = q.report
    assert sum(report.counts.values()) == len(report.rows) and report.counts["int8"] > 1
    assert report.fp32_bytes == sum(t.numel() * 4 for t in model.parameters()) + sum(
        b.numel() * b.element_size() for b in model.buffers()
    )
    assert report.compiled_bytes < report.fp32_bytes
    assert row(q, "linear").kernel
    assert str(report) == repr(q)
    for r in report.rows:
        assert r.node in str(report) or len(r.node) > 30


def test_report_of_a_frozen_module_names_fused_activations() -> None:
    ops = [r.op for r in compiled(small()).report.rows]
    assert ops[:2] == ["conv2d + relu", "conv2d + relu"]


def test_a_zoo_model_of_attention_and_embeddings() -> None:
    model = settled("bert_encoder")
    given = batches("bert_encoder", 1)
    q = compiled(model, given)
    out: Tensor = q(*given[0])
    assert sqnr(model(*given[0]), out) > 10
    assert all(r.reason for r in q.report.rows if r.precision == "fp32")
    assert q.report.counts["int8"] > 0
