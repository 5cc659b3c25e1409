"""The names, checkpoints and modes of a model that is being trained."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

import fxquant
from fxquant import QuantConfig

from ..toys import Small, images, small, sqnr
from .toys import optimizer_of, prepared, step


def test_names_of_the_model_survive() -> None:
    model = small()
    q = prepared(model)
    assert [n for n, _ in q.named_parameters()] == [n for n, _ in model.named_parameters()]
    own = [k for k in q.state_dict() if not k.startswith("fake_quants.")]
    assert own == list(model.state_dict())
    assert isinstance(q.get_submodule("stem"), nn.Conv2d) and isinstance(q.get_submodule("bn"), nn.BatchNorm2d)


@pytest.mark.parametrize("scales", ["moving_average", "learned"])
def test_checkpoints_load_both_ways(scales: Any) -> None:
    model, other = small(), small()
    q = prepared(model, config=QuantConfig(scales=scales))
    q.load_state_dict(other.state_dict())
    assert all(torch.equal(q.state_dict()[k], v) for k, v in other.state_dict().items())
    step(q.train(), optimizer_of(q))
    model.load_state_dict(q.float_state_dict())
    assert all(torch.equal(q.state_dict()[k], v) for k, v in model.state_dict().items())


def test_a_checkpoint_that_lacks_keys_is_refused_as_ever() -> None:
    state = small().state_dict()
    del state["head.weight"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"head\.weight"'):
        prepared().load_state_dict(state)


def test_a_checkpoint_with_other_bits_is_refused() -> None:
    q = prepared(config=QuantConfig(weight_bits=4))
    match = "weight of 'stem' has integers from -1 to 1, but this module was prepared for -7 to 7"
    with pytest.raises(RuntimeError, match=match):
        q.load_state_dict(prepared(config=QuantConfig(weight_bits=2)).state_dict())


def test_the_model_stays_as_it_was() -> None:
    model = small().train()
    before = copy.deepcopy(model.state_dict())
    q = prepared(model)
    step(q, optimizer_of(q))
    assert model.training and q.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_modes_that_parts_of_the_model_are_in_are_kept() -> None:
    model = small().train()
    model.get_submodule("bn").eval()
    q = prepared(model)
    assert q.get_submodule("stem").training and not q.get_submodule("bn").training
    before = q.state_dict()["bn.running_mean"].clone()
    q(images())
    assert torch.equal(q.state_dict()["bn.running_mean"], before)


def test_modules_that_the_forward_does_not_use_are_kept() -> None:
    model = small()
    model.unused = nn.Linear(3, 2)
    model.register_buffer("note", torch.ones(2))
    q = prepared(model)
    q.load_state_dict(model.state_dict())
    assert set(model.state_dict()) <= set(q.state_dict())


def test_names_that_differ_in_a_dot_only_do_not_meet() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.b, self.b_c, self.head = nn.ModuleDict({"c": nn.Linear(6, 6)}), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.b_c(self.b["c"](x)))
            return logits

    q = prepared(Nested(), calibration=[torch.randn(4, 6)], config=QuantConfig(scales="learned"))
    assert sum(n.endswith("_weight.theta") or n.endswith("_weight_.theta") for n, _ in q.named_parameters()) == 3


@pytest.mark.parametrize("assign", [False, True])
def test_parameters_read_by_name_beside_their_layer_are_the_layers(assign: bool) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.last(torch.relu(self.first(x))), self.first.weight.t()) + self.last.bias[:6]

    model, other, x = Tied(), Tied(), torch.randn(16, 6)
    q = prepared(model, calibration=[x])
    q.load_state_dict(other.state_dict(), assign=assign)
    assert sqnr(other(x), q.eval()(x)) > 20
    q.train()(x).sum().backward()
    assert all(p.grad is not None for p in q.parameters())
    assert sqnr(q.eval()(x), fxquant.convert(q)(x)) > 60


def test_a_train_of_the_models_own_is_called() -> None:
    class FrozenNorm(Small):
        def train(self, mode: bool = True) -> FrozenNorm:
            super().train(mode)
            self.bn.eval()
            return self

    q = prepared(FrozenNorm()).train()
    assert q.get_submodule("stem").training and not q.get_submodule("bn").training


@pytest.mark.parametrize("observer", ["histogram", "measured"])
def test_preparing_a_model_in_training_mode_leaves_its_statistics(observer: Any) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    for fresh in (True, False):
        q = prepared(model.train(), config=QuantConfig(observer=observer))
        assert all(torch.equal(q.state_dict()[k], v) for k, v in model.state_dict().items()), fresh
        assert all(m.training for m in q.modules())
        model(images())


@pytest.mark.parametrize(
    "hook", [torch.nn.utils.weight_norm, lambda layer: prune.l1_unstructured(layer, "weight", 0.5)]
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_a_layer_whose_weight_a_hook_computes_trains_in_fp32(hook: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    hook(model[0])
    with torch.no_grad():
        model(images())  # else its weight belongs to an autograd graph, and cannot be copied
    q = prepared(model).train()
    q(images()).square().sum().backward()
    assert [n for n, p in q.named_parameters() if p.grad is None] == []
    done = fxquant.convert(q)
    assert "it has forward hooks" in {row.node: row for row in done.report.rows}["0"].reason
    x = images()
    assert sqnr(q.eval()(x), done(x)) > 60


def test_functions_over_parameters_keep_their_names_and_train() -> None:
    class Functional(nn.Module):
        offset: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 192) / 14)
            self.register_buffer("offset", torch.ones(5))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x.flatten(1), self.weight) + self.offset

    model = Functional()
    q = prepared(model)
    assert [n for n, _ in q.named_parameters()] == ["weight"]
    before = q.state_dict()["weight"].clone()
    step(q.train(), optimizer_of(q))
    assert not torch.equal(q.state_dict()["weight"], before)
    q.load_state_dict(model.state_dict())
    x = images()
    assert sqnr(model(x), q.eval()(x)) > 30
    assert sqnr(model(x), q.double().float()(x)) > 30, "buffers that the graph reads follow a change of dtype"
