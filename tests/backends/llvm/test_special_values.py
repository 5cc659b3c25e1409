"""NaN, infinity and masks, in fp32 and at the borders of int8."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant.backends.llvm.codegen.isa import Isa
from fxquant.backends.llvm.codegen.isas import available

from .support import frozen, placeholders, planned

NAN, INF = float("nan"), float("inf")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu, tanh": lambda x: F.gelu(x, approximate="tanh"),
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "layer_norm": lambda x: F.layer_norm(x, (20,)),
    "softmax": lambda x: x.softmax(-1),
}


class Then(nn.Module):
    """A layer, and a function of what it gives."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(12, 20), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x)) * 2.0


def alike(exact: Tensor, given: Tensor, tolerance: float = 0.05) -> None:
    """NaN in the same places, and near elsewhere."""
    assert torch.equal(exact.isnan(), given.isnan())
    assert torch.allclose(
        exact, given, rtol=0.0, atol=tolerance * float(exact.nan_to_num().abs().max()), equal_nan=True
    )


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("isa", available(), ids=lambda isa: isa.name)
@torch.no_grad()
def test_a_row_of_nan_stays_one_and_no_other_becomes_one(name: str, isa: Isa, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxquant.backends.llvm.backend.available", lambda: (isa,))
    torch.manual_seed(0)
    model, x = Then(ACTIVATIONS[name]).eval(), torch.randn(5, 12)
    q = fxquant.compile(model, scheme="dynamic", backend="llvm")
    q(x)  # the first call runs forward() too
    x[1, 3] = NAN
    alike(model(x), q(x))


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
@torch.no_grad()
def test_gates_pass_nan_on(cell: type[nn.Module]) -> None:
    torch.manual_seed(0)
    layer, x = cell(6, 9).eval(), torch.randn(7, 3, 6)
    q = fxquant.compile(layer, scheme="dynamic")
    x[4, 1, 2] = NAN
    alike(layer(x)[0], q(x)[0])
    assert q(x)[0][4:, 1].isnan().all() and not q(x)[0][:4].isnan().any()


@torch.no_grad()
def test_a_maximum_over_a_window_with_nan_is_nan() -> None:
    torch.manual_seed(0)

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.pool, self.last = nn.Conv2d(3, 8, 1), nn.MaxPool2d(2), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.pool(self.first(x))
            return x, self.last(x)

    model, x = Pooled().eval(), torch.randn(1, 3, 8, 8)
    config = fxquant.QuantConfig(overrides={"first": None, "pool": None})
    program = frozen(model, [(x,)], config=config)
    x[0, 1, 2, 5] = NAN
    alike(model(x)[0], planned(program, (x,)).run(placeholders(program, (x,)))[0], 1e-5)


@torch.no_grad()
def test_nan_gives_the_same_integers_on_every_instruction_set() -> None:
    """A call refuses NaN in its inputs, but ops in fp32 may give it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 20, 1)).eval()
    x = torch.randn(1, 3, 8, 8)
    program = frozen(model, [(x,)])
    x = torch.where(x > 1.5, NAN, x)
    outputs = [planned(program, (x,), isa).run(placeholders(program, (x,))) for isa in available()]
    assert all(torch.equal(outputs[0], o) for o in outputs[1:])


def masked(rows: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: (x + rows).softmax(-1)


@torch.no_grad()
def test_softmax_of_masked_rows() -> None:
    """Rows of the lowest number are uniform, as it takes the place of -inf in many models. Rows of -inf are NaN."""
    torch.manual_seed(0)
    x = torch.randn(4, 12)
    rows = torch.zeros(4, 20)
    rows[1], rows[2, 5:], rows[3, 5:] = torch.finfo(torch.float32).min, torch.finfo(torch.float32).min, -INF
    model = Then(masked(rows)).eval()
    q = fxquant.compile(model, scheme="dynamic", backend="llvm")
    for _ in range(2):
        alike(model(x), q(x))
    assert torch.allclose(q(x)[1], torch.full((20,), 2 / 20), rtol=1e-6)
    alone = Then(masked(torch.full((4, 20), -INF))).eval()
    q = fxquant.compile(alone, scheme="dynamic", backend="llvm")
    for _ in range(2):
        assert alone(x).isnan().all() and q(x).isnan().all()


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(x)[:, None].chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask) * 2.0


@pytest.mark.parametrize("value", [-INF, torch.finfo(torch.float32).min], ids=str)
@torch.no_grad()
def test_attention_of_a_row_that_sees_nothing(value: float) -> None:
    """As torch: zeros for -inf, the mean of all values for the lowest number."""
    torch.manual_seed(0)
    model, x = Attention().eval(), torch.randn(2, 6, 16)
    mask = torch.zeros(6, 6)
    mask[2], mask[3, 4:] = value, value
    q = fxquant.compile(model, scheme="dynamic", backend="llvm")
    for _ in range(2):
        alike(model(x, mask), q(x, mask))
    x[1, 0, 0] = NAN
    alike(model(x, mask), q(x, mask))
