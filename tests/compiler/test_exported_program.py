"""A ``torch.export.ExportedProgram`` as the model."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import ModelError
from fxquant.compiler.numerics.metrics import sqnr

from .test_export import tensors
from .toys import settle, small


class Heads(nn.Module):
    """Two inputs, one by name; a dict of results; a shared weight."""

    def __init__(self) -> None:
        super().__init__()
        self.l, self.h = nn.Linear(16, 16), nn.Linear(16, 16)
        self.h.weight = self.l.weight

    def forward(self, x: Tensor, *, gate: Tensor) -> dict[str, Any]:
        y = self.l(x).relu() * gate
        return {"first": self.h(y), "others": [y.mean(1), y]}


def exported(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(model, args, kwargs, dynamic_shapes=dynamic)


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_results_and_batch_sizes(scheme: Any) -> None:
    torch.manual_seed(0)
    model, x, gate, batch = Heads().eval(), torch.randn(4, 16), torch.rand(4, 16), {0: torch.export.Dim("batch")}
    program = exported(model, (x,), {"gate": gate}, {"x": batch, "gate": batch})
    q = fxquant.compile(program, scheme, calibration=[{"x": x, "gate": gate}] * 2 if scheme == "static" else None)
    with torch.no_grad():
        expected, given = model(x[:3], gate=gate[:3]), q(x[:3], gate=gate[:3])
    assert list(given) == ["first", "others"] and sqnr(tensors(expected), tensors(given)) > 25


def test_images_are_folded_and_fused() -> None:
    model, x = settle(small()), torch.randn(2, 3, 8, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    q = fxquant.compile(exported(model, (x,), {}, ({0: torch.export.Dim.AUTO},)), calibration=[x, x * 2])
    with torch.no_grad():
        assert sqnr([model(x)], [q(x)]) > 25 and sqnr([model(x[:1])], [q(x[:1])]) > 20
    assert any(row.op == "conv2d + relu" for row in q.report.rows) and not any("norm" in r.op for r in q.report.rows)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_is_refused() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("n", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            assert isinstance(self.n, Tensor)
            self.n.add_(1)
            return x * self.n

    x = torch.randn(2, 3, 8, 8)
    with pytest.raises(ModelError, match="The exported program changes 'n'"):
        fxquant.compile(exported(Counting(), (x,), {}, None), calibration=[x])
    with pytest.raises(ModelError, match="Compile the ExportedProgram itself"):
        fxquant.compile(exported(small(), (x,), {}, None).module(), calibration=[x])
