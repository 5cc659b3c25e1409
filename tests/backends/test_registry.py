"""Backends are found by name; a new one is a package and a line."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

import fxquant
from fxquant import ConfigError
from fxquant.backends import registry
from fxquant.compiler.cli.demo import accuracy, digits_network, load_digits, train


def test_a_new_backend_is_a_folder_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.PACKAGES, "toy", "tests.backends.toy")
    torch.manual_seed(0)
    digits = load_digits()
    model = train(digits_network(), digits.train[0][:600], digits.train[1][:600], epochs=3)
    q = fxquant.compile(model, calibration=digits.calibration[0].split(20), backend=cast(Any, "toy"))
    rows = {row.node: row for row in q.report.rows}
    assert {row.kernel for row in rows.values()} >= {"toy::conv2d", "toy::linear", "toy::adaptive_avg_pool2d"}
    sums = [row for row in rows.values() if row.op == "add"]
    assert len(sums) == 2 and {row.reason for row in sums} == {"the toy adds in fp32"}
    assert "toy::conv2d" in str(q)
    right, ours = (accuracy(m, *digits.test) for m in (model, q))
    assert ours > right - 2


def test_an_unknown_backend_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"backend is 'x68'. Did you mean 'x86'\?"):
        registry.create_backend("x68")


@pytest.mark.parametrize("name", registry.PACKAGES)
def test_every_name_has_a_package(name: str) -> None:
    assert registry.create_backend(name).name == name


def test_a_package_without_create_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.PACKAGES, "toy", "tests.backends")
    with pytest.raises(ConfigError, match=r"'toy': tests.backends has no function create\(target, executor\)"):
        registry.create_backend("toy")


def test_an_object_that_is_no_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.backends.toy.create", lambda target, executor: object())
    monkeypatch.setitem(registry.PACKAGES, "toy", "tests.backends.toy")
    with pytest.raises(ConfigError, match=r"'toy': the object that create\(\) returned has no 'name'"):
        registry.create_backend("toy")


@pytest.mark.parametrize("name", registry.PACKAGES)
def test_a_target_of_another_type_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="target must be a Target, got str"):
        registry.create_backend(name, cast(Any, "avx2"))
