"""Models that people have, each with one construct that is easily got wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import fxquant

from .toys import Lambda, sqnr


def check(model: nn.Module, x: Tensor, floor: float = 25) -> fxquant.QuantizedModule:
    model = model.eval()
    q = fxquant.compile(model, calibration=[x])
    with torch.no_grad():
        assert sqnr(model(x), q(x)) > floor
    return q


def test_synonyms_of_dim() -> None:
    cat: Any = torch.cat  # its stub knows only dim=

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        return m.head(cat([y, y], axis=1)).mean(axis=(2, 3))

    check(Lambda(forward, conv=nn.Conv2d(3, 4, 3), head=nn.Conv2d(8, 6, 1)), torch.randn(2, 3, 9, 9))


def test_unknown_in_place_op_as_a_statement() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        y.masked_fill_(y > 0.5, -1.0)
        return m.head(y)

    check(Lambda(forward, conv=nn.Conv2d(3, 4, 3), head=nn.Conv2d(4, 6, 1)), torch.randn(2, 3, 9, 9), 15)


def test_weight_computed_in_the_forward_stays_fp32_with_a_reason() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return F.linear(m.body(x), m.head.weight * x.mean())

    q = check(Lambda(forward, body=nn.Linear(8, 16), head=nn.Linear(16, 4)), torch.randn(6, 8))
    assert any("its weight is computed in forward()" in row.reason for row in q.report.rows)


def test_causal_mask_in_a_buffer() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(8, 8)
            self.register_buffer("mask", torch.full((5, 5), -torch.inf).triu(1))

        def forward(self, x: Tensor) -> Tensor:
            y = self.proj(x)
            return torch.softmax(y @ y.transpose(1, 2) + self.mask, -1) @ y

    check(Masked(), torch.randn(2, 5, 8))


def test_batch_norm_without_running_statistics() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(), nn.Conv2d(4, 4, 1)
    )
    q = check(model, torch.randn(4, 3, 9, 9))
    assert any("running statistics" in row.reason for row in q.report.rows)


def test_linear_over_as_many_tokens_as_channels() -> None:
    """Maxima per token must not be taken for maxima per channel where the two are equal in number."""
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    with torch.no_grad():
        model[2].get_parameter("weight").abs_()
    x = torch.randn(4, 16, 16)
    x[:, 8:] *= 0.01
    q = check(model, x)
    flipped = x.flip(1)
    with torch.no_grad():
        assert sqnr(model(flipped), q(flipped)) > 25


def test_clamp_to_tensor_bounds_is_not_absorbed() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(torch.clamp(m.conv(x), m.low, m.high))

    model = Lambda(forward, conv=nn.Conv2d(3, 4, 3), head=nn.Conv2d(4, 2, 1))
    model.register_buffer("low", torch.tensor(0.0))
    model.register_buffer("high", torch.tensor(0.5))
    check(model, torch.randn(2, 3, 8, 8))


def test_override_of_an_absorbed_clamp_keeps_the_unit_in_fp32() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()
    config = fxquant.QuantConfig(overrides={"relu": None})
    q = fxquant.compile(model, calibration=[torch.randn(2, 3, 9, 9)], config=config)
    assert "override 'relu'" in q.report.rows[0].reason


def test_stream_of_data_without_a_length() -> None:
    class Stream(IterableDataset[Tensor]):
        def __iter__(self) -> Any:
            return iter(torch.randn(6, 3, 9, 9))

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    q = fxquant.compile(model, calibration=DataLoader(Stream(), batch_size=2))
    assert q.frozen


@pytest.mark.parametrize("executor", ["auto", "eager"])
def test_several_outputs(executor: Any) -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.conv(x)
        return {"features": y, "logits": (m.head(y),)}

    model = Lambda(forward, conv=nn.Conv2d(3, 4, 3), head=nn.Conv2d(4, 2, 1)).eval()
    x = torch.randn(2, 3, 8, 8)
    out = fxquant.compile(model, calibration=[x], executor=executor)(x)
    with torch.no_grad():
        assert sqnr(model(x)["logits"][0], out["logits"][0]) > 25
