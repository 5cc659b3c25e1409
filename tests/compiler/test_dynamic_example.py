"""Dynamic models that are captured on an example of their calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import CalibrationError, CaptureError, ConfigError
from fxquant.compiler.capture.export import export as real
from fxquant.compiler.runtime.call_forms import GraphForm

from .dynamic_toys import near

DIM = 32


class Encoder(nn.Module):
    """As language models have it: optional inputs, and results by name."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, DIM)
        layer = nn.TransformerEncoderLayer(DIM, 4, 64, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(DIM, 5)

    def forward(self, ids: Tensor, mask: Tensor | None = None, pooled: bool = False) -> dict[str, Tensor]:
        x = self.encoder(self.embedding(ids), src_key_padding_mask=None if mask is None else mask == 0)
        return {"logits": self.head(x.mean(1) if pooled else x), "hidden": x}


def model_and_inputs() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    mask = torch.ones(3, 9)
    mask[0, 6:] = 0
    return Encoder().eval(), torch.randint(50, (3, 9)), mask


def forms(q: fxquant.QuantizedModule) -> list[Any]:
    return list(q._compiled.run._chosen.values())  # type: ignore[union-attr]


def test_a_call_like_the_example_runs_the_graph() -> None:
    model, ids, mask = model_and_inputs()
    q = fxquant.compile(model, scheme="dynamic", example={"ids": ids, "mask": mask})
    for _ in range(2):
        near(model, q, ids, mask)
    (form,) = forms(q)
    assert isinstance(form, GraphForm)
    assert set(q(ids, mask)) == {"logits", "hidden"}
    near(model, q, ids[:1, :5], mask[:1, :5])  # other sizes
    near(model, q, ids, mask=mask)


def test_other_calls_run_forward() -> None:
    model, ids, mask = model_and_inputs()
    q = fxquant.compile(model, scheme="dynamic", example=(ids, mask))
    for _ in range(2):
        near(model, q, ids)
        near(model, q, ids, None, True)
        near(model, q, ids, mask, pooled=True)
    assert not any(isinstance(form, GraphForm) for form in forms(q))
    near(model, q, ids, mask)


def test_the_model_stays_as_it_was() -> None:
    model, ids, mask = model_and_inputs()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fxquant.compile(model, scheme="dynamic", example=(ids, mask))
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)


def test_examples_that_do_not_fit_are_refused() -> None:
    model, ids, _ = model_and_inputs()
    with pytest.raises(CalibrationError):
        fxquant.compile(model, scheme="dynamic", example={"tokens": ids})
    with pytest.raises(ConfigError, match="example is for scheme 'dynamic'"):
        fxquant.compile(model, calibration=[ids], example=ids)


class Whole(nn.Module):
    """torch.fx leaves the attention whole, so that torch.export is tried if there is an example."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.attention = nn.Linear(DIM, DIM), nn.MultiheadAttention(DIM, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.attention(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize("leaves", [(), (nn.MultiheadAttention,)], ids=str)
def test_a_graph_of_fx_is_kept_where_export_gives_none(
    leaves: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def export(*args: Any) -> Any:
        calls.append(args)
        raise CaptureError("torch.export cannot capture it.")

    monkeypatch.setattr("fxquant.compiler.workflows.dynamic_graph.export", export)
    torch.manual_seed(0)
    model, x = Whole().eval(), torch.randn(2, 5, DIM)
    q = fxquant.compile(model, scheme="dynamic", example=(x,), leaf_modules=leaves)
    assert len(calls) == (0 if leaves else 1)  # it knows no leaf_modules
    assert any(node.target == "first" for node in q.graph.graph.nodes)
    near(model, q, x)


def test_what_is_exported_is_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.export may leave what it traced with in a module: not in the one that runs other calls."""
    seen: list[nn.Module] = []

    def export(module: nn.Module, batch: Any) -> Any:
        seen.append(module)
        return real(module, batch)

    monkeypatch.setattr("fxquant.compiler.workflows.dynamic_graph.export", export)
    model, ids, mask = model_and_inputs()
    q = fxquant.compile(model, scheme="dynamic", example=(ids, mask))
    assert {*seen[0].modules()}.isdisjoint(q.module.modules())
