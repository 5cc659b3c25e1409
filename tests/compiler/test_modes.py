"""Training mode in a graph that was traced in eval mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant import CaptureError, QATModule


class Residual(nn.Module):
    """Dropout in all its forms; ``wide`` reads one both directly and through it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = x + self.drop(x)
        x = F.dropout(self.second(x), 0.25, training=self.training)
        logits: Tensor = self.head(x)
        return logits


class StochasticDepth(nn.Module):
    """Written with a branch on ``self.training``."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * torch.empty(len(x), 1).bernoulli_(0.5)


class Block(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.body, self.depth, self.scale = nn.Linear(6, 6), StochasticDepth(), scale

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.depth(self.body(x))
        return result


class Auxiliary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.aux = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.body(x)
        return (x, self.aux(x)) if self.training else x


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.body(x), 0.5 if self.training else 0.1)


def prepared(model: nn.Module, **options: Any) -> QATModule:
    options = {"backend": "reference", "calibration": [torch.randn(16, 6)], **options}
    return fxquant.prepare(model, scheme="qat", **options)


def test_dropout_drops_in_training_and_only_there() -> None:
    model = prepared(Residual())
    x = torch.randn(4, 6)
    assert torch.equal(model.eval()(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


def test_a_sum_with_its_own_dropout_drops_one_side() -> None:
    model = Residual()
    with torch.no_grad():
        for layer in (model.first, model.second, model.head):
            layer.weight.copy_(torch.eye(6)[: layer.out_features])
            layer.bias.zero_()
    model.drop.p = 1.0
    q = prepared(model, calibration=[torch.rand(16, 6)])
    q.freeze_observers()
    x = torch.rand(4, 6) * 0.4
    assert torch.allclose(q.eval()(x), 2 * x[:, :3], atol=0.03)
    q.train()
    outputs = torch.stack([q(x) for _ in range(20)])
    kept = outputs.abs() > 0.01  # the function behind drops a quarter of the sum, and scales up the rest
    assert 0.5 < kept.float().mean() < 0.95
    assert torch.allclose(outputs[kept], (x[:, :3] / 0.75).expand_as(outputs)[kept], atol=0.03)


def test_dropout_obeys_a_part_that_is_set_to_eval_mode() -> None:
    q = prepared(nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 6))))
    q.train()
    q.get_submodule("1").eval()
    q.freeze_observers()
    x = torch.randn(4, 6)
    assert torch.equal(q(x), q(x))


def test_the_rate_of_dropout_can_be_changed_later() -> None:
    q = prepared(nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 6)))
    q.freeze_observers()
    setattr(q.get_submodule("1"), "p", 0.0)  # noqa: B010
    q.train()
    x = torch.randn(4, 6)
    assert torch.equal(q(x), q(x))


def test_stochastic_depth_drops_in_training_and_is_no_op_at_inference() -> None:
    q = prepared(nn.Sequential(nn.Linear(6, 6), Block(), nn.Linear(6, 3)))
    x = torch.randn(32, 6)
    q.freeze_observers()
    q.train()
    assert not torch.equal(q(x), q(x))
    done = fxquant.convert(q)
    assert [row.op for row in done.report.rows] == ["linear", "linear", "add", "linear"]


def test_an_argument_that_depends_on_the_mode_does_so_in_the_graph() -> None:
    model = Scaled()
    with torch.no_grad():
        model.body.weight.copy_(torch.eye(6))
        model.body.bias.zero_()
    q = prepared(model)
    x = -torch.ones(1, 6)
    q.freeze_observers()
    assert torch.allclose(q.eval()(x), 0.1 * x, atol=0.05)
    assert torch.allclose(q.train()(x), 0.5 * x, atol=0.05)
    assert torch.allclose(fxquant.convert(q)(x), 0.1 * x, atol=0.05)


def test_a_forward_with_another_path_in_training_is_refused_with_its_line() -> None:
    with pytest.raises(CaptureError, match=r"another path in training mode.*test_modes\.py:\d+ \(return \(x, self"):
        prepared(Auxiliary())


class Forward(nn.Module):
    """A forward from a function of the module and its input."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **modules: nn.Module) -> None:
        super().__init__()
        self.first, self.function = nn.Linear(6, 6), function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def test_what_always_drops_goes_on_dropping() -> None:
    q = prepared(Forward(lambda m, x: F.dropout(m.first(x), 0.5, training=True)))
    x = torch.randn(4, 6)
    assert not torch.equal(q.eval()(x), q(x))


@pytest.mark.parametrize("scales", ["moving_average", "learned"])
def test_dropout_in_place_trains_and_leaves_earlier_readers_alone(scales: Any) -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.first(x)
        return y.sum(1), self.last(self.drop(y))

    model = Forward(forward, last=nn.Linear(6, 3), drop=nn.Dropout(0.5, inplace=True))
    q = prepared(model, config=fxquant.QuantConfig(scales=scales)).train()
    q.freeze_observers()
    x = torch.randn(4, 6)
    assert torch.equal(q(x)[0], q(x)[0]) and not torch.equal(q(x)[1], q(x)[1])
    q(x)[1].sum().backward()


def test_constants_made_in_the_forward_are_no_other_path() -> None:
    q = prepared(Forward(lambda m, x: m.first(x - torch.arange(6) / 6) * torch.tensor(2.0)))
    x = torch.randn(4, 6)
    assert q(x).shape == (4, 6)


def test_other_values_that_go_into_a_dropout_in_training_are_another_path() -> None:
    model = Forward(lambda m, x: m.drop(m.first(x) if m.training else x), drop=nn.Dropout(0.5))
    with pytest.raises(CaptureError, match="another path in training mode"):
        prepared(model)


def test_dropout_in_front_of_a_stub_of_torch_drops() -> None:
    stub = torch.ao.quantization.DeQuantStub()
    quant = torch.ao.quantization.QuantStub()
    model = Forward(lambda m, x: m.stub(m.drop(m.first(m.quant(x)))), drop=nn.Dropout(0.5), stub=stub, quant=quant)
    q = prepared(model).train()
    q.freeze_observers()
    x = torch.randn(4, 6)
    assert not torch.equal(q(x), q(x))
