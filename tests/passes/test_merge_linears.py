"""Linear layers that read one value become one, and give what they gave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from fxquant.compiler.capture.capture import capture
from fxquant.compiler.capture.normalize import normalize
from fxquant.passes.base import PassResult
from fxquant.passes.rewrites.merge_linears import MergeLinears


class Three(nn.Module):
    """`read(q, k, v, x)` of three projections of x."""

    def __init__(self, read: Callable[..., Any], bias: tuple[bool, ...] = (True, True, True)) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, n, bias=b) for n, b in zip((8, 8, 4), bias, strict=True))
        self.read = read

    def forward(self, x: Tensor) -> Any:
        return self.read(self.q(x), self.k(x), self.v(x), x)


def mix(q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(-2, -1), -1) @ v


def merged(model: nn.Module, kind: Callable[[str], Any] = lambda path: "int8") -> tuple[fx.GraphModule, PassResult]:
    gm = capture(model)
    normalize(gm)
    result = MergeLinears(kind)(gm)
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        torch.testing.assert_close(gm(x), model.eval()(x), atol=1e-6, rtol=1e-5)
    assert MergeLinears(kind)(gm).rewrites == 0
    return gm, result


def widths(gm: fx.GraphModule) -> list[int]:
    return sorted(m.out_features for m in gm.modules() if isinstance(m, nn.Linear))


def test_one_wide_layer() -> None:
    gm, result = merged(Three(mix))
    assert widths(gm) == [20]
    assert list(result.remarks.values()) == ["merged: q, k, v"]


def test_views_of_any_kind() -> None:
    def heads(q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        split = [t.view(t.size(0), t.size(1), 2, -1).transpose(1, 2) for t in (q, k, v)]
        return (split[0] @ split[1].transpose(-2, -1) @ split[2]).transpose(1, 2).flatten(2)

    assert widths(merged(Three(heads))[0]) == [20]


def test_a_view_that_joins_axes() -> None:
    assert widths(
        merged(Three(lambda q, k, v, x: torch.softmax(q.view(-1, 8) + k.view(-1, 8), -1) @ v.view(8, 5)))[0]
    ) == [20]


def test_only_layers_alike() -> None:
    assert widths(merged(Three(mix), {"q": "int8", "k": "int8", "v": "fp16"}.get)[0]) == [4, 16]
    assert widths(merged(Three(mix), {"q": "int8"}.get)[0]) == [4, 8, 8]
    assert widths(merged(Three(mix, bias=(True, False, True)))[0]) == [8, 12]


@pytest.mark.parametrize(
    ("read", "left"),
    [
        (lambda q, k, v, x: (q, mix(q, k, v, x)), [8, 12]),  # q is returned
        (lambda q, k, v, x: mix(torch.einsum("nij->nij", q), k, v, x), [8, 12]),  # not in the table
        (lambda q, k, v, x: mix(q.unsqueeze(0).view_as(x), k, v, x), [8, 12]),  # after a view
    ],
)
def test_outputs_that_may_need_to_be_contiguous(read: Callable[..., Any], left: list[int]) -> None:
    gm, result = merged(Three(read))
    assert widths(gm) == left
    assert any("may need a contiguous tensor" in text for text in result.refusals.values())


def test_a_layer_used_twice_stays() -> None:
    class Twice(Three):
        def forward(self, x: Tensor) -> Any:
            return mix(self.q(x), self.k(x), self.v(x), x) + self.q(x * 2).sum()

    gm, result = merged(Twice(mix))
    assert widths(gm) == [8, 12]
    assert "used 2 times" in next(iter(result.refusals.values()))


def test_tied_weights_stay_tied() -> None:
    model = Three(mix)
    model.k.weight = model.q.weight
    gm, result = merged(model)
    assert widths(gm) == [4, 8, 8]
    assert gm.get_submodule("q").weight is gm.get_submodule("k").weight
    assert all("another layer has the same weight" in text for text in result.refusals.values())
