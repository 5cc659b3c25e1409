"""A graph is used only for calls on which it gave what the model's own forward gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fxquant
from fxquant.compiler.numerics.metrics import sqnr


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
        self.kept: list[Tensor] = []
        self.memo: dict[str, Tensor] = {}


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


class ListState(Base):
    def forward(self, x: Any) -> Any:
        self.kept.append(self.layer(x))
        return torch.stack(self.kept).sum(0)


class Memo(Base):
    def forward(self, x: Any) -> Any:
        if "y" not in self.memo:
            self.memo["y"] = self.layer(x)
        return self.q(x) + self.memo["y"]


class Batch:
    def __init__(self, x: Tensor, y: Tensor | None = None) -> None:
        self.x, self.y = x, y


class ByObject(Base):
    def forward(self, batch: Any) -> Any:
        return self.layer(batch.x) + (batch.y if batch.y is not None else 0)


class ByDict(Base):
    def forward(self, batch: Any) -> Any:
        scale = batch.get("scale")
        return self.layer(batch["x"]) * (1 if scale is None else scale)


class Scaled(nn.Linear):
    """A subclass with a forward of its own."""

    def forward(self, x: Any) -> Any:
        return super().forward(x) * 3


class WithSubclass(Base):
    def __init__(self) -> None:
        super().__init__()
        self.scaled = Scaled(8, 8)

    def forward(self, x: Any) -> Any:
        return self.scaled(self.layer(x))


class Alternating(Base):
    """Replaces a state twice in each call: the new object may lie where the old one lay."""

    def __init__(self) -> None:
        super().__init__()
        self.last = [float("0.0")]  # an object that is freed when it is replaced

    def forward(self, x: Any) -> Any:
        out = self.layer(x)
        for _ in range(2):
            count = self.last[0]
            del self.last
            self.last = [count + 1.0]
        return out * self.last[0]


class ByFlag(Base):
    def forward(self, x: Any, flag: Any) -> Any:
        return self.layer(x) if flag is True else self.q(x)

    def features(self, x: Tensor) -> Tensor:
        out: Tensor = self.k(x)
        return out


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
        (ListState, [(X,)] * 4),
        (Memo, [(X,), (X * 2,), (X,)]),
        (ByObject, [(Batch(X, X),), (Batch(X),), (Batch(X, X),)]),
        (ByDict, [({"x": X},), ({"x": X, "scale": 2.0},), ({"x": X},)]),
        (WithSubclass, [(X,)] * 3),
        (Alternating, [(X,)] * 5),
        (ByFlag, [(X, True), (X, False), (X, True)]),
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


def test_a_function_over_a_weight_counts_as_a_layer() -> None:
    """A subclass of nn.Linear is traced to `F.linear`, which the model's own forward has in fp32."""
    model = WithSubclass().eval()
    q = fxquant.compile(model, scheme="dynamic")
    with torch.no_grad():
        expected = model(X)
        first, second = q(X), q(X)
    assert torch.equal(first, q.module(X))
    assert 25 < sqnr([expected], [second]) < sqnr([expected], [first])


def test_layers_beside_the_traced_way_are_replaced_too(capfd: pytest.CaptureFixture[str]) -> None:
    model = ByFlag().eval()
    q = fxquant.compile(model, scheme="dynamic")
    found = {row.node: row for row in q.report.rows}
    assert found["layer"].precision == found["k"].precision == "int8 dynamic"
    assert "the traced graph does not call it" in found["layer"].reason
    with torch.no_grad():
        assert sqnr([model.features(X)], [q.module.features(X)]) > 28  # type: ignore[operator]
    q(X, True)
    q(X, False)
    assert capfd.readouterr().err == ""  # a form that fails is no failure
