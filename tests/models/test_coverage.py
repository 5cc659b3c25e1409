"""Architectures that others wrote compile, and compute the same: the corpus of `python -m benchmarks.coverage`."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("expecttest")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_the_corpus(scheme: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import coverage

    monkeypatch.setattr(coverage, "_ratio", lambda *given: 1.0)
    found = [coverage.evaluate(name, scheme) for name in coverage.MODELS]
    refused = [r.model for r in found if not r.seconds]
    if scheme == "static":
        assert not refused and sum(r.share >= 0.9 for r in found if "torch" not in r.model) >= 70
    wrong = [r.row() for r in found if r.seconds and not (r.again and min(r.quality, r.one) > 15)]
    assert not wrong
