"""A graph is used only for calls on which it gave what the model's own forward gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fxquant
from fxquant.compiler.lockstep import sqnr


class Base(nn.Module):
    """One layer, three that read one value, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 8)
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.register_buffer("count", torch.zeros(8))
        self.calls, self.state = 0, None


class ByType(Base):
    def forward(self, x: Any) -> Tensor:
        out: Tensor = self.layer(x) if isinstance(x, Tensor) else self.layer(x[0]) * 2
        return out


class ByNone(Base):
    def forward(self, x: Any, scale: Any) -> Tensor:
        out: Tensor = self.layer(x) if scale is None else self.layer(x) * scale
        return out


class BySequence(Base):
    def forward(self, x: Any) -> Any:
        y = self.lstm(x)[0]
        return y.data * 2 if isinstance(y, PackedSequence) else y


class Counting(Base):
    def forward(self, x: Any) -> Tensor:
        self.calls += 1
        out: Tensor = self.layer(x) + self.calls
        return out


class WritingBuffer(Base):
    def forward(self, x: Any) -> Tensor:
        self.get_buffer("count").add_(1)
        out: Tensor = self.layer(x) + self.count
        return out


class Carrying(Base):
    def forward(self, x: Any) -> Tensor:
        y, self.state = self.lstm(x, self.state)
        out: Tensor = y
        return out


class ChangingInput(Base):
    def forward(self, x: Any) -> Tensor:
        out: Tensor = self.layer(x.mul_(2))
        return out


class AsIntegers(Base):
    def forward(self, x: Any) -> Tensor:
        return self.layer(x).view(torch.int32).view(torch.float32)


class NamedTuple(Base):
    def forward(self, x: Any) -> Any:
        return self.layer(x).max(-1)


class Sizes(Base):
    def forward(self, x: Any) -> Any:
        y = self.layer(x)
        return y, y.shape


class ReadingAttributes(Base):
    def forward(self, x: Any, state: Any = None) -> Any:
        if state is None:
            like = next(self.parameters())
            state = like.new_zeros(self.lstm.num_layers, x.size(0), self.lstm.hidden_size)
        self.lstm.flatten_parameters()
        y = self.lstm(x, (state, state))[0]
        return y @ self.layer.weight.t() + self.layer.bias * self.layer.out_features


class ReadingWeights(Base):
    def forward(self, x: Any) -> Any:
        return self.layer(x) @ self.layer.weight.t() + self.q(x) * self.k(x) + self.v(x)


X = torch.randn(4, 5, 8)


@pytest.mark.parametrize(
    ("cls", "calls"),
    [
        (ByType, [(X,), ((X,),), (X,), ([X],)]),
        (ByNone, [(X, None), (X, 2.0), (X, None), (X, torch.full((8,), 3.0))]),
        (BySequence, [(X,), (pack_sequence([X[0], X[1, :2]]),), (X,)]),
        (Counting, [(X,)] * 4),
        (WritingBuffer, [(X,)] * 4),
        (Carrying, [(X,)] * 4),
        (ChangingInput, [(X,)] * 3),
        (AsIntegers, [(X,)] * 2),
        (NamedTuple, [(X,)] * 3),
        (Sizes, [(X,), (X[:2],), (X,)]),
        (ReadingAttributes, [(X,)] * 3),
        (ReadingWeights, [(X,), (X[:1],), (X,)]),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_every_call_gives_what_the_forward_gives(cls: type[Base], calls: list[tuple[Any, ...]]) -> None:
    model = cls().eval()
    q = fxquant.compile(model, scheme="dynamic", dtype=torch.float16)
    for args in calls:
        own = [a.clone() if isinstance(a, Tensor) else a for a in args]
        with torch.no_grad():
            expected, actual = model(*args), q(*own)
        assert type(expected) is type(actual)
        assert sqnr([expected], [actual]) > 50
        if isinstance(expected, tuple):
            assert [type(a) for a in expected] == [type(a) for a in actual]


def test_merged_layers_serve_the_forward_that_calls_them_one_by_one() -> None:
    """No weight is held twice: the parts run the merged layer."""
    model = ReadingWeights().eval()
    q = fxquant.compile(model, scheme="dynamic")
    assert any("merged: q, k, v" in row.reason for row in q.report.rows)
    first, second = q(X), q(X)
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)
