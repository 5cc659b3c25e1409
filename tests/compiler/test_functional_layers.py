"""Functional calls over parameters and buffers, and weights that forward() computes, count as layers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fxquant
from fxquant import QuantConfig
from fxquant.backends.ops.table import OPS
from fxquant.compiler.capture.capture import capture
from fxquant.compiler.capture.constants import evaluate_constants
from fxquant.compiler.capture.normalize import normalize

from .toys import Lambda

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class BatchNormAct(nn.BatchNorm2d):
    """Normalization, dropout and activation in one module, as model libraries write it."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, f"expected 4D input (got {x.ndim}D input)")
        by_batch = True if self.training else self.running_mean is None and self.running_var is None
        own = not self.training or self.track_running_stats
        mean, var = (self.running_mean, self.running_var) if own else (None, None)
        x = F.batch_norm(x, mean, var, self.weight, self.bias, by_batch, self.momentum or 0.0, self.eps)
        out: Tensor = self.act(self.drop(x))
        return out


def test_an_exported_convolution_is_folded_and_fused_as_a_traced_one_is() -> None:
    class Decides(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = super().forward(x) if x.shape[1] == 3 else x
            return out

    plain = with_norms(lambda c: nn.Sequential(nn.BatchNorm2d(c), nn.ReLU()))
    q, expected = (fxquant.compile(net, calibration=[X]) for net in (Decides(*plain).eval(), plain))
    assert torch.equal(q(X), expected(X))
    assert [(r.node, r.op, r.kernel) for r in q.report.rows] == [(r.node, r.op, r.kernel) for r in expected.report.rows]


def with_norms(norm: Callable[[int], nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, bias=False), norm(8), nn.Conv2d(8, 8, 3, bias=False), norm(8), nn.Conv2d(8, 4, 1)]
    net = nn.Sequential(*layers).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    return net


def test_a_functional_normalization_is_folded_and_fused_as_a_module_is() -> None:
    plain = with_norms(lambda c: nn.Sequential(nn.BatchNorm2d(c), nn.Identity(), nn.ReLU()))
    one = with_norms(BatchNormAct)
    q, expected = (fxquant.compile(net, calibration=[X]) for net in (one, plain))
    assert torch.equal(q(X), expected(X))
    assert [(r.op, r.precision, r.kernel) for r in q.report.rows] == [
        (r.op, r.precision, r.kernel) for r in expected.report.rows
    ]


PARTS: dict[str, Any] = {
    "c1": nn.Conv1d(16, 8, 3), "c2": nn.Conv2d(3, 8, 3, groups=1), "c3": nn.Conv3d(3, 8, 1),
    "t1": nn.ConvTranspose1d(16, 4, 3), "t2": nn.ConvTranspose2d(3, 8, 3, 2, 1, 1, bias=False),
    "l": nn.Linear(16, 8), "w": torch.randn(16, 8) / 4, "b": torch.randn(8), "table": torch.randn(20, 16),
    "bn1": nn.BatchNorm1d(8), "bn2": nn.BatchNorm2d(8), "gn": nn.GroupNorm(2, 8), "ln": nn.LayerNorm(16),
    "prelu": nn.PReLU(8),
}  # fmt: skip


def batch_norm(m: Any, bn: str, x: Tensor) -> Tensor:
    norm = getattr(m, bn)
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.1, 1e-3)


FORMS: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "conv1d": (lambda m, x: F.conv1d(x[:, 0], m.c1.weight, m.c1.bias, 2, padding=1), "conv1d"),
    "conv2d": (lambda m, x: torch.conv2d(x, m.c2.weight, m.c2.bias, padding="same", dilation=2), "conv2d"),
    "conv3d": (lambda m, x: F.conv3d(input=x[:, :, None], weight=m.c3.weight), "conv3d"),
    "conv_transpose1d": (lambda m, x: F.conv_transpose1d(x[:, 0], m.t1.weight, m.t1.bias, 2), "conv_transpose1d"),
    "conv_transpose2d": (
        lambda m, x: torch.conv_transpose2d(x, m.t2.weight, None, 2, 1, output_padding=1), "conv_transpose2d",
    ),
    "linear": (lambda m, x: F.linear(x, m.l.weight, m.l.bias), "linear"),
    "linear of a slice": (lambda m, x: F.linear(x, m.l.weight[2:6], m.l.bias[2:6]), "linear"),
    "linear of a product": (lambda m, x: F.linear(x, m.l.weight * m.b[:, None].abs(), m.b), "linear"),
    "addmm": (lambda m, x: torch.addmm(m.b, x.flatten(0, 2), m.w), "linear"),
    "addmm by name": (lambda m, x: torch.addmm(input=m.b, mat1=x.flatten(0, 2), mat2=m.w), "linear"),
    "matmul": (lambda m, x: x @ m.w, "linear"),
    "matmul of a transposed": (lambda m, x: x.matmul(m.l.weight.T), "linear"),
    "embedding": (lambda m, x: F.embedding(x.abs().int() % 20, m.table), "embedding"),
    "torch.embedding": (lambda m, x: torch.embedding(m.table, x.abs().int() % 20), "embedding"),
    "layer_norm": (lambda m, x: F.layer_norm(x, (16,), m.ln.weight, m.ln.bias, 1e-3), "layer_norm"),
    "layer_norm, no weight": (lambda m, x: torch.layer_norm(x, (16, 16)), "layer_norm"),
    "group_norm": (lambda m, x: F.group_norm(m.c2(x), 2, m.gn.weight, m.gn.bias), "group_norm"),
    "batch_norm after max": (lambda m, x: batch_norm(m, "bn2", m.c2(x).relu()), "batch_norm2d"),
    "batch_norm of three axes": (lambda m, x: batch_norm(m, "bn1", m.c1(x[:, 0]).relu()), "batch_norm1d"),
    "batch_norm of unknown axes": (lambda m, x: batch_norm(m, "bn1", x[:, 0, :8]), "batch_norm"),
    "prelu": (lambda m, x: F.prelu(m.c2(x), m.prelu.weight), "prelu"),
}  # fmt: skip


def captured(model: nn.Module) -> Any:
    gm = capture(model)
    evaluate_constants(gm)
    normalize(gm)
    return gm


@pytest.mark.parametrize("name", FORMS)
def test_a_functional_call_becomes_a_layer(name: str) -> None:
    forward, kind = FORMS[name]
    model = Lambda(forward, **PARTS).eval()
    gm = captured(model)
    modules = dict(gm.named_modules())
    rows = [OPS.of(n, modules) for n in gm.graph.nodes if n.op == "call_module"]
    assert kind in [row.name for row in rows if row is not None]
    with torch.no_grad():
        assert torch.allclose(gm(X), model(X), rtol=1e-5, atol=1e-5)


COMPUTED: dict[str, Callable[[Any, Tensor], Any]] = {
    "by an input": lambda m, x: F.linear(x, m.l.weight * x.mean(), m.l.bias),
    "at random": lambda m, x: F.linear(x, F.dropout(m.l.weight, 0.5, training=True), m.l.bias),
    "normalized by the batch": lambda m, x: F.batch_norm(m.c2(x), None, None, m.b, m.b, True),
    "scaled addmm": lambda m, x: torch.addmm(m.b, x.flatten(0, 2), m.w, alpha=2.0),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_what_a_layer_cannot_say_stays_a_function(name: str) -> None:
    model = Lambda(COMPUTED[name], **PARTS).eval()
    gm = captured(model)
    assert sum(n.op == "call_module" for n in gm.graph.nodes) == (name == "normalized by the batch")
    torch.manual_seed(0)
    expected = model(X)
    torch.manual_seed(0)
    assert torch.allclose(gm(X), expected, rtol=1e-5, atol=1e-5)


class Standardized(nn.Conv2d):
    """Weight standardization (Qiao et al. 2019, arXiv:1903.10520)."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(weight, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Padded(nn.Conv2d):
    """Pads by itself, as TensorFlow does."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, [0, 1, 0, 1]), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def old_weight_norm(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(module)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "standardized": lambda: Standardized(8, 8, 3),
    "padded": lambda: Padded(8, 8, 3, 2),
    "weight_norm": lambda: parametrizations.weight_norm(nn.Conv2d(8, 8, 3)),
    "old weight_norm": lambda: old_weight_norm(nn.Conv2d(8, 8, 3)),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Conv2d(8, 8, 3)),
    "old spectral_norm": lambda: nn.utils.spectral_norm(nn.Conv2d(8, 8, 3)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Conv2d(8, 8, 1)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_computed_weights_are_quantized_and_the_model_is_left_alone(kind: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), LAYERS[kind](), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    before, classes = {k: v.clone() for k, v in net.state_dict().items()}, [type(m) for m in net.modules()]
    q = fxquant.compile(net, calibration=[X], config=QuantConfig(mixed_precision=False))
    reasons = [row.reason for row in q.report.rows if row.op.startswith("conv2d")]
    assert len(reasons) == 3 and not any("hooks" in reason or "computed" in reason for reason in reasons)
    expected = net(X)
    assert (q(X) - expected).square().mean() < 1e-3 * expected.square().mean()
    after = net.state_dict()
    assert classes == [type(m) for m in net.modules()] and before.keys() == after.keys()
    assert all(torch.equal(after[k], v) for k, v in before.items())


def test_a_parameter_that_forward_writes_is_no_constant() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        m.l.weight.mul_(2)
        return F.linear(x, m.l.weight + 0) + F.linear(x, m.l.weight.t().t() * 1)

    model = Lambda(forward, l=nn.Linear(16, 16)).eval().requires_grad_(False)
    gm = capture(model)
    assert evaluate_constants(gm) == 0


def test_a_large_expansion_is_not_kept() -> None:
    model = Lambda(lambda m, x: x + m.b.expand(4096, 8)[:4].sum(), b=torch.randn(8))
    gm = captured(model)
    assert all(b.numel() <= 8 for b in gm.buffers())
