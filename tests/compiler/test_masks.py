"""Masks of -inf, and the layers of torch with attention, in the static scheme."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant

from .dynamic_toys import seeded
from .test_capture_faults import checked, rows
from .test_islands import compared


class Attention(nn.Module):
    """Causal self-attention, with a mask of -inf that is made inside or given."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.h = nn.MultiheadAttention(16, 4, batch_first=True), nn.Linear(16, 4)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        if mask is None:
            mask = torch.triu(torch.full((x.shape[1], x.shape[1]), -torch.inf), 1)
        return self.h(self.a(x, x, x, attn_mask=mask, need_weights=False)[0])


def test_a_causal_mask_of_any_length() -> None:
    q = checked(seeded(Attention), [rows(2, 10, 16) for _ in range(4)], rows(2, 25, 16))
    assert q.report.quantized_share == 1


def test_a_mask_of_inf_as_input() -> None:
    model = seeded(Attention)
    given = [(rows(2, 10, 16), torch.full((10, 10), -torch.inf).triu(1)) for _ in range(4)]
    q = fxquant.compile(model, calibration=given)
    assert compared(q, model, *given[0]) > 20
    with pytest.raises(fxquant.CallError, match="Input 'x' holds NaN or inf"):
        q(given[0][0] * torch.inf, given[0][1])
    with pytest.raises(fxquant.CallError, match="Input 'mask' holds NaN or inf"):
        q(given[0][0], given[0][1] * torch.nan)


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.TransformerEncoderLayer(16, 4, 32, batch_first=True),
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 4, 32, activation="gelu", norm_first=True), 2, enable_nested_tensor=False
        ),
        lambda: nn.Sequential(nn.Linear(16, 16), nn.TransformerEncoderLayer(16, 2, 32)),
    ],
)
def test_layers_of_torch_with_attention_are_quantized_inside(build: Callable[[], nn.Module]) -> None:
    q = checked(seeded(build), [rows(5, 3, 16) for _ in range(4)], rows(7, 3, 16), rows(5, 1, 16))
    assert sum(row.fp32_bytes for row in q.report.rows if row.op.startswith("linear") and row.precision == "fp32") == 0


def test_packed_sequences_of_torch_stay_whole_with_a_reason() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
            self.t, self.h = nn.TransformerEncoder(layer, 1), nn.Linear(16, 4)

        def forward(self, x: Tensor, padding: Tensor) -> Any:
            return self.h(self.t(x, src_key_padding_mask=padding))

    model, padding = seeded(Padded), torch.arange(6) >= torch.tensor([[4], [6]])
    given = (rows(2, 6, 16), padding)
    q = fxquant.compile(model, calibration=[given])
    assert compared(q, model, *given) > 25
    assert any("enable_nested_tensor=False" in row.reason for row in q.report.rows)
