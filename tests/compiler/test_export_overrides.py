"""Overrides of models that torch.export captures: it keeps no modules, and of classes the names only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxquant

TOKENS = torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("key, expected", [(nn.Linear, 4), (nn.TransformerEncoderLayer, 8), ("layers.0*", 4)], ids=str)
def test_overrides_by_class_in_an_exported_graph(key: Any, expected: int) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    config = fxquant.QuantConfig(overrides={key: "dynamic"})
    q = fxquant.compile(nn.TransformerEncoder(layer, 2).eval(), calibration=[TOKENS], config=config)
    assert sum(row.precision == "int8 dynamic" for row in q.report.rows) == expected


def test_an_override_that_matches_nothing_lists_names_of_the_model() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    config = fxquant.QuantConfig(overrides={"zzz": None})
    with pytest.raises(fxquant.ConfigError, match="matches nothing") as raised:
        fxquant.compile(nn.TransformerEncoder(layer, 2).eval(), calibration=[TOKENS], config=config)
    assert "_empty" not in str(raised.value) and "'layers.0.linear1'" in str(raised.value)
