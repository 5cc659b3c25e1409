"""Folding of batch norms, and removal of no-ops: exact, done once, refused with a reason."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxquant
from fxquant.backends.ops.table import OPS
from fxquant.passes.rewrites.eliminate_noops import EliminateNoops
from fxquant.passes.rewrites.fold_batchnorm import FoldBatchNorm
from tests.compiler.toys import Lambda, compiled, computed, normalized, settle, small, sqnr
from tests.models import ConvBNAct, resnet18

CASES: dict[str, tuple[nn.Module, nn.Module, tuple[int, ...]]] = {
    "conv1d": (nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), (2, 4, 9)),
    "conv2d": (nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), (2, 4, 7, 7)),
    "conv3d": (nn.Conv3d(4, 6, 3), nn.BatchNorm3d(6), (2, 4, 5, 5, 5)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), (2, 4, 7, 7)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8), (2, 4, 7, 7)),
    "transposed1d": (nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d(6), (2, 4, 7)),
    "transposed2d": (nn.ConvTranspose2d(4, 6, 3, stride=2), nn.BatchNorm2d(6), (2, 4, 5, 5)),
    "transposed3d": (nn.ConvTranspose3d(4, 6, 2), nn.BatchNorm3d(6), (2, 4, 3, 3, 3)),
    "transposed grouped": (
        nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False),
        nn.BatchNorm2d(6),
        (2, 4, 5, 5),
    ),
    "linear": (nn.Linear(4, 6), nn.BatchNorm1d(6), (5, 4)),
    "without affine": (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False), (2, 4, 7, 7)),
    "large eps": (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, eps=0.1), (2, 4, 7, 7)),
}


def names(gm: fx.GraphModule) -> list[str]:
    modules = dict(gm.named_modules())
    return [row.name for n in computed(gm) if (row := OPS.of(n, modules)) is not None]


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(b.detach().abs().max()))


@pytest.mark.parametrize("case", CASES)
def test_folding_is_exact_and_done_once(case: str) -> None:
    layer, norm, shape = CASES[case]
    model = settle(nn.Sequential(layer, norm))
    gm = normalized(model)
    x = torch.randn(shape)
    result = FoldBatchNorm()(gm)
    assert (result.rewrites, dict(result.refusals)) == (1, {})
    assert not any(n.startswith("batch_norm") for n in names(gm))
    assert close(gm(x), model(x))
    assert FoldBatchNorm()(gm).rewrites == 0
    assert close(gm(x), model(x))


def test_a_tiny_variance_keeps_its_digits() -> None:
    model = settle(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    with torch.no_grad():
        model.get_buffer("1.running_var").fill_(1e-9)
    gm = normalized(model)
    FoldBatchNorm()(gm)
    x = torch.randn(2, 3, 4, 4)
    assert close(gm(x), model(x))


def test_a_whole_network() -> None:
    model = settle(resnet18(10, 0.25))
    gm = normalized(model)
    total = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert FoldBatchNorm()(gm).rewrites == total
    x = torch.randn(1, 3, 64, 64)
    assert close(gm(x), model(x))


def test_requires_grad_survives() -> None:
    model = settle(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))).requires_grad_(False)
    gm = normalized(model)
    FoldBatchNorm()(gm)
    assert not any(p.requires_grad for p in gm.parameters())


def two_readers(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    return m.bn(y) + y


def called_twice(m: Any, x: Tensor) -> Any:
    return m.bn(m.conv(m.conv(x)))


def after_relu(m: Any, x: Tensor) -> Any:
    return m.bn(m.conv(x).relu())


def at_the_start(m: Any, x: Tensor) -> Any:
    return m.conv(m.bn(x))


def straight(m: Any, x: Tensor) -> Any:
    return m.bn(m.conv(x))


@pytest.mark.parametrize(
    ("function", "norm", "reason"),
    [
        (two_readers, nn.BatchNorm2d(3), "'conv' has 2 readers"),
        (called_twice, nn.BatchNorm2d(3), "'conv' is used 2 times"),
        (straight, nn.BatchNorm2d(3, track_running_stats=False), "no running statistics"),
        (after_relu, nn.BatchNorm2d(3), "no convolution or linear layer"),
        (at_the_start, nn.BatchNorm2d(3), "no convolution or linear layer"),
    ],
)
def test_refusals_have_reasons(function: Any, norm: nn.Module, reason: str) -> None:
    model = settle(Lambda(function, conv=nn.Conv2d(3, 3, 1), bn=norm))
    gm = normalized(model)
    before = str(gm.graph)
    result = FoldBatchNorm()(gm)
    assert result.rewrites == 0
    [(node, why)] = result.refusals.items()
    assert node.name == "bn" and reason in why
    assert str(gm.graph) == before
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(gm(x), model(x))


@pytest.mark.parametrize("function", [two_readers, called_twice])
def test_refusals_reach_the_report(function: Any) -> None:
    model = settle(Lambda(function, conv=nn.Conv2d(3, 3, 1), bn=nn.BatchNorm2d(3)))
    q = compiled(model, [torch.randn(2, 3, 8, 8)])
    [bn] = [r for r in q.report.rows if "batch_norm" in r.op]
    assert "not folded" in bn.reason


def test_one_norm_behind_two_layers_folds_into_both() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return m.bn(m.a(x)) + m.bn(m.b(x))

    model = settle(Lambda(forward, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 4, 1), bn=nn.BatchNorm2d(4)))
    gm = normalized(model)
    assert FoldBatchNorm()(gm).rewrites == 2
    x = torch.randn(2, 3, 5, 5)
    assert close(gm(x), model(x))


def test_layers_that_share_their_weight_fold_each_for_itself() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    model[2].weight = model[0].weight
    settle(model)
    gm = normalized(model)
    assert FoldBatchNorm()(gm).rewrites == 2
    x = torch.randn(2, 3, 5, 5)
    assert close(gm(x), model(x))


def test_noops_go_and_the_values_stay() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.same(m.drop(x)).contiguous().clone().detach()
        y = F.dropout(y, 0.5, m.training)
        y = F.dropout(y, p=0.0, training=True)
        return torch.clone(y) * 2

    model = Lambda(forward, same=nn.Identity(), drop=nn.Dropout(0.3)).eval()
    gm = normalized(model)
    assert EliminateNoops()(gm).rewrites == 6
    assert names(gm) == ["clone", "clone", "mul"]
    x = torch.randn(2, 3)
    assert torch.equal(gm(x), model(x))
    assert EliminateNoops()(gm).rewrites == 0


def test_a_dropout_that_always_drops_stays() -> None:
    gm = normalized(Lambda(lambda m, x: F.dropout(x, 0.5, True) + 1).eval())
    assert EliminateNoops()(gm).rewrites == 0
    assert names(gm) == ["dropout", "add"]


def test_noops_at_the_borders_of_the_graph() -> None:
    model = nn.Sequential(nn.Identity(), nn.Dropout()).eval()
    gm = normalized(model)
    assert EliminateNoops()(gm).rewrites == 2
    x = torch.randn(2)
    assert torch.equal(gm(x), x)


def test_a_clone_protects_what_is_changed_in_place() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = x * 1
        kept = y.clone()
        y.mul_(2)
        return operator.add(kept, y)

    model = Lambda(forward)
    gm = normalized(model)
    EliminateNoops()(gm)
    x = torch.randn(2, 3)
    assert torch.equal(gm(x.clone()), model(x.clone()))


def test_a_clone_protects_the_input_from_an_unknown_in_place_op() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return m.conv(x.clone().exp_()) + m.conv(x)

    model = Lambda(forward, conv=nn.Conv2d(3, 3, 1)).eval()
    gm = normalized(model)
    EliminateNoops()(gm)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(gm(x.clone()), model(x.clone()))


def test_shapes_and_lint_after_both() -> None:
    for model in (small(), ConvBNAct(3, 8, 3).eval()):
        gm = normalized(model)
        FoldBatchNorm()(gm)
        EliminateNoops()(gm)
        gm.graph.lint()
        x = torch.randn(1, 3, 8, 8)
        assert gm(x).shape == model(x).shape


def test_a_norm_over_another_axis_that_happens_to_be_as_long_is_not_folded() -> None:
    model = settle(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8)))
    x = torch.randn(4, 8, 6)
    q = compiled(model, [x])
    rows = {row.node: row for row in q.report.rows}
    assert "gives no matrix" in rows["1"].reason and rows["3"].precision == "int8"
    assert sqnr(model(x), q(x)) > 25


def test_in_training_a_norm_over_another_axis_is_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)).eval()
    with pytest.raises(fxquant.ModelError, match=r"normalizes axis 1 of a \(4, 8, 8\) tensor"):
        fxquant.prepare(model, scheme="qat", calibration=[torch.randn(4, 8, 6)])


def test_layers_with_hooks_are_called_as_they_are() -> None:
    model = settle(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)))
    model.get_submodule("0").register_forward_hook(lambda module, given, result: result * 2)
    x = torch.randn(2, 3, 8, 8)
    q = compiled(model, [x])
    rows = {row.node: row for row in q.report.rows}
    assert "it has forward hooks" in rows["0"].reason and "forward hooks" in rows["1"].reason
    assert rows["3"].precision == "int8"
    assert sqnr(model(x), q(x)) > 25
