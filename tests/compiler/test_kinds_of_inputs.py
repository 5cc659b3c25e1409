"""A graph holds for inputs of the kinds that it was captured with; other calls run forward() in fp32."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant import CalibrationError, FallbackWarning
from fxquant.compiler.execution.interface import kind_of

DIM = 16


class WithMask(nn.Module):
    """Causal unless it is given a mask: the op takes None, too, so that a graph would run."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor, mask: Any = None) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        causal = mask is None
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal))


class WithWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor, weight: Any = None) -> Tensor:
        x = self.layer(x)
        return F.layer_norm(x if weight is None else 2 * x, (DIM,), weight) + x


class WithState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.GRU(DIM, DIM, batch_first=True), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor, state: Any = None) -> Tensor:
        y, _ = self.layer(x, state)
        return self.head(4 * y if state is None else y)


class WithItems(nn.Module):
    """Reads what a dict holds, or how many tensors there are."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(DIM, DIM)

    def forward(self, given: Any, past: Any = None) -> Tensor:
        y = self.layer(given["x"])
        if "factor" in given:
            y = y * given["factor"]
        return y if past is None else torch.cat([past[0], y], 1)


def x() -> Tensor:
    return torch.randn(2, 5, DIM)


CASES: dict[str, tuple[type[nn.Module], Any, Any]] = {
    "no mask": (WithMask, lambda: (x(), torch.ones(5, 5).tril().bool()), lambda: (x(),)),
    "a mask of floats": (WithMask, lambda: (x(), torch.ones(5, 5).tril().bool()), lambda: (x(), torch.ones(5, 5))),
    "no weight": (WithWeight, lambda: (x(), torch.rand(DIM)), lambda: (x(), None)),
    "no state": (WithState, lambda: (x(), torch.randn(1, 2, DIM)), lambda: (x(),)),
    "a key less": (WithItems, lambda: ({"x": x(), "factor": x()},), lambda: ({"x": x()},)),
    "a key more": (WithItems, lambda: ({"x": x()},), lambda: ({"x": x(), "factor": x()},)),
    "no past": (WithItems, lambda: ({"x": x()}, (x(), x())), lambda: ({"x": x()},)),
    "a past": (WithItems, lambda: ({"x": x()},), lambda: ({"x": x()}, (x(), x()))),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_other_kinds_run_in_fp32(name: str) -> None:
    torch.manual_seed(0)
    make, known, other = CASES[name]
    model = make().eval()
    q = fxquant.compile(model, calibration=[known() for _ in range(3)])
    given = known()
    assert F.mse_loss(q(*given), model(*given)) < 1e-2 * model(*given).square().mean()
    given = other()
    with pytest.warns(FallbackWarning, match=r"forward\(\) (was traced|takes 1 inputs)"):
        assert torch.allclose(q(*given), model(*given), atol=1e-5)


@torch.no_grad()
def test_calibration_with_two_kinds_of_calls_is_refused() -> None:
    mask = torch.ones(5, 5).tril().bool()
    with pytest.raises(CalibrationError, match=r"batch 1: Input 'mask' is None; forward\(\) was traced for a bool ten"):
        fxquant.compile(WithMask().eval(), calibration=[(x(), mask), (x(),)])


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, "None"),
        (torch.zeros(2, dtype=torch.half), "a float tensor"),
        (torch.zeros(2, dtype=torch.int32), "an integer tensor"),
        (torch.zeros(2).bool(), "a bool tensor"),
        (True, "a bool"),
        (1.5, "a number"),
        ("left", "str"),
        ((torch.zeros(1), None), "[a float tensor, None]"),
        (OrderedDict(b=None, a=1), "{'a': a number, 'b': None}"),
        (np.int64(3), "a number"),
    ],
    ids=str,
)
def test_kinds(value: Any, kind: str) -> None:
    assert kind_of(value) == kind


class Results(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.layer(x)
        return {"y": y, "all": [x, {"y": y}], "both": (x, y)}


def test_results_are_plain_lists_and_dicts() -> None:
    q = fxquant.compile(Results().eval(), calibration=[x() for _ in range(3)])
    result = q(x())
    result["new"] = 1
    result["all"].append(2)
    result["all"][1].pop("y")
    assert type(result["both"]) is tuple and list(result) == ["y", "all", "both", "new"]


def test_inputs_that_nothing_reads_may_be_anything() -> None:
    class Labelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(DIM, DIM)

        def forward(self, x: Tensor, labels: Any = None) -> Tensor:
            return self.layer(x)

    q = fxquant.compile(Labelled().eval(), calibration=[x() for _ in range(3)])
    given = x()
    assert torch.equal(q(given), q(given, torch.zeros(3)))
