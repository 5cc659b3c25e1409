"""Small models and helpers for the tests of ``compiler`` and ``passes``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

import fxquant
from fxquant.compiler.capture.capture import capture
from fxquant.compiler.capture.normalize import normalize
from fxquant.compiler.report.report import Row


class Lambda(nn.Module):
    """A forward from a function of tensors, with modules and buffers."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, Tensor):
                self.register_buffer(name, part)
            else:
                self.add_module(name, part)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


class Small(nn.Module):
    """conv, bn, relu, conv, relu, pool, flatten, linear: [N,3,8,8] -> [N,5]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.act = nn.ReLU()
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(8 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.body(self.act(self.bn(self.stem(x)))))
        logits: Tensor = self.head(torch.flatten(x, 1))
        return logits


class Branchy(nn.Module):
    """A forward that depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # the branch
            return x
        return -x


class Controlled(nn.Module):
    """An untraceable module among layers: [N,3,8,8] -> [N,4,8,8]."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.inner = nn.Sequential(Branchy())
        self.last = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.inner(self.first(x)))
        return y


def settle(model: nn.Module) -> nn.Module:
    """``model`` in eval mode, with batch norms that do something."""
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                if m.running_mean is not None and m.running_var is not None:
                    m.running_mean.normal_(0, 0.5)
                    m.running_var.uniform_(0.3, 2)
                if m.affine:
                    m.weight.uniform_(0.5, 1.5)
                    m.bias.normal_(0.2, 0.3)
    return model.eval()


def small() -> nn.Module:
    return settle(Small())


def images(batch: int = 2, channels: int = 3, size: int = 8) -> Tensor:
    return torch.randn(batch, channels, size, size)


def data(count: int = 3) -> list[Tensor]:
    return [images() for _ in range(count)]


def compiled(model: nn.Module, calibration: Any = None, **options: Any) -> fxquant.QuantizedModule:
    """``model`` by the reference backend, which measures nothing."""
    batches = data() if calibration is None else calibration
    return fxquant.compile(model, calibration=batches, **{"backend": "reference", **options})


def normalized(model: nn.Module) -> fx.GraphModule:
    gm = capture(model)
    normalize(gm)
    return gm


def computed(gm: fx.GraphModule) -> list[fx.Node]:
    return [n for n in gm.graph.nodes if n.op.startswith("call_")]


def rows(q: fxquant.QuantizedModule, op: str) -> list[Row]:
    """Rows of the report whose first op is ``op``."""
    return [r for r in q.report.rows if r.op.split(" + ")[0] == op]


def row(q: fxquant.QuantizedModule, op: str) -> Row:
    found = rows(q, op)
    assert len(found) == 1, f"{op}: {q.report}"
    return found[0]


def sqnr(exact: Tensor, other: Tensor) -> float:
    """Signal to noise ratio in dB."""
    exact, other = exact.detach(), other.detach()
    noise = (exact - other).square().mean().clamp_min(1e-20)
    return float(10 * torch.log10(exact.square().mean() / noise))


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Everything that a user can see of ``model`` is as before, bit for bit."""
    state = copy.deepcopy(model.state_dict())
    identities = {n: id(p) for n, p in (*model.named_parameters(), *model.named_buffers())}
    training = {n: m.training for n, m in model.named_modules()}
    classes = {n: type(m) for n, m in model.named_modules()}
    hooks = {n: (list(m._forward_hooks), list(m._forward_pre_hooks)) for n, m in model.named_modules()}
    grads = {n: (p.requires_grad, p.grad) for n, p in model.named_parameters()}
    yield
    after = model.state_dict()
    assert list(after) == list(state)
    for name, value in state.items():
        assert torch.equal(after[name].isnan(), value.isnan())
        assert torch.equal(after[name].nan_to_num(), value.nan_to_num()), name
    assert {n: id(p) for n, p in (*model.named_parameters(), *model.named_buffers())} == identities
    assert {n: m.training for n, m in model.named_modules()} == training
    assert {n: type(m) for n, m in model.named_modules()} == classes
    assert {n: (list(m._forward_hooks), list(m._forward_pre_hooks)) for n, m in model.named_modules()} == hooks
    assert {n: (p.requires_grad, p.grad) for n, p in model.named_parameters()} == grads
