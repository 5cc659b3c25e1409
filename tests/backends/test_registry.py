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
