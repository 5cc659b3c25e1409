"""The decisions under test do not depend on measured times."""

import pytest

from fxquant.backends.x86.lowering import fp32_entry


@pytest.fixture(autouse=True)
def no_entry_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp32_entry, "SHARE", -1e9)
