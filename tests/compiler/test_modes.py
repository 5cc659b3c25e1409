"""Training mode in a graph that was traced in eval mode."""

from __future__ import annotations

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


def prepared(model: nn.Module, backend: str = "reference") -> QATModule:
    return fxquant.prepare(model, scheme="qat", calibration=[torch.randn(16, 6)], backend=backend)


def test_dropout_drops_in_training_and_only_there() -> None:
    model = prepared(Residual())
    x = torch.randn(4, 6)
    assert torch.equal(model.eval()(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


def test_a_sum_with_its_own_dropout_drops_one_side() -> None:
    model = Residual()
    with torch.no_grad():
        for layer in (model.first, model.second):
            layer.weight.copy_(torch.eye(6))
            layer.bias.zero_()
        model.head.weight.copy_(torch.eye(6)[:3])
        model.head.bias.zero_()
    model.drop.p = 1.0  # all of it: what is left is the direct way
    q = prepared(model)
    x = torch.rand(64, 6) + 0.5
    q.train()
    mean = torch.stack([q(x) for _ in range(50)]).mean(0)
    assert torch.allclose(mean, x[:, :3].clamp_max(mean.max()), atol=0.5)
    assert torch.allclose(q.eval()(x), 2 * x[:, :3], atol=0.9)


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
