"""Real architectures under `scheme="dynamic"`: accuracy and size."""

from __future__ import annotations

import pytest
import torch

import fxquant
from fxquant.backends.base.dynamic_spec import weight_names
from fxquant.compiler.numerics.metrics import sqnr

from ...models import ZOO, batches, settled
from ...sequence_models import SEQUENCES

MODELS = {name: ZOO[name] for name in ("bert_encoder", "lstm_classifier")} | SEQUENCES
NAMES = [pytest.param(n, marks=pytest.mark.slow) if n == "bert_base" else n for n in MODELS]


@pytest.mark.parametrize(("dtype", "least", "share"), [(torch.int8, 33, 0.30), (torch.float16, 60, 0.525)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_accuracy_and_size(name: str, dtype: torch.dtype, least: float, share: float) -> None:
    model = settled(name, zoo=MODELS)
    data = batches(name, 4, 2, zoo=MODELS)
    q = fxquant.compile(model, scheme="dynamic", dtype=dtype)
    with torch.no_grad():
        expected, actual = [model(*x) for x in data], [q(*x) for x in data]
    assert sqnr(expected, actual) >= least
    assert q.report.compiled_bytes <= share * q.report.fp32_bytes
    assert all(row.reason for row in q.report.rows if row.precision == "fp32")
    with_weights = [m for m in model.modules() if weight_names(m)]
    assert len(with_weights) > 0 and all(row.fp32_bytes > 0 for row in q.report.rows if row.precision != "fp32")
