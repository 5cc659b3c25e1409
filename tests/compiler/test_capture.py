"""Capture and normalisation: one spelling per op, in-place ops, leaves, stubs, messages."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxquant
from fxquant import CaptureError, ConfigError
from fxquant.compiler.capture.capture import capture
from fxquant.compiler.capture.normalize import normalize

from .toys import Branchy, Controlled, Lambda, compiled, computed, images, normalized, row, small, sqnr

Function = Callable[[nn.Module, Tensor], Any]


def added(m: nn.Module, x: Tensor, how: Callable[[Tensor, Tensor], Any]) -> Any:
    return how(x * 2, x)


SPELLINGS: dict[str, tuple[Callable[..., Any], list[nn.Module]]] = {
    "relu": (
        F.relu,
        [
            nn.Sequential(nn.ReLU()),
            nn.Sequential(nn.ReLU(inplace=True)),
            Lambda(lambda m, x: F.relu(x)),
            Lambda(lambda m, x: F.relu(input=x)),
            Lambda(lambda m, x: torch.relu(x)),
            Lambda(lambda m, x: x.relu()),
            Lambda(lambda m, x: torch.relu_(x.mul(1))),
            Lambda(lambda m, x: x.mul(1).relu_()),
            Lambda(lambda m, x: F.relu_(x.mul(1))),
        ],
    ),
    "add": (
        torch.add,
        [
            Lambda(lambda m, x: added(m, x, operator.add)),
            Lambda(lambda m, x: added(m, x, operator.iadd)),
            Lambda(lambda m, x: added(m, x, torch.add)),
            Lambda(lambda m, x: added(m, x, lambda a, b: a.add(b))),
            Lambda(lambda m, x: added(m, x, lambda a, b: a.add_(b))),
            Lambda(lambda m, x: added(m, x, lambda a, b: torch.add(a, other=b))),
            Lambda(lambda m, x: added(m, x, lambda a, b: torch.add(input=a, other=b))),
        ],
    ),
    "flatten": (
        torch.flatten,
        [
            nn.Sequential(nn.Flatten()),
            Lambda(lambda m, x: torch.flatten(x, 1)),
            Lambda(lambda m, x: torch.flatten(x, start_dim=1)),
            Lambda(lambda m, x: x.flatten(1)),
            Lambda(lambda m, x: x.flatten(start_dim=1)),
        ],
    ),
    "view": (
        torch.reshape,
        [
            Lambda(lambda m, x: x.view(2, -1)),
            Lambda(lambda m, x: x.view((2, -1))),
            Lambda(lambda m, x: x.view([2, -1])),
            Lambda(lambda m, x: x.reshape(2, -1)),
            Lambda(lambda m, x: x.reshape((2, -1))),
            Lambda(lambda m, x: torch.reshape(x, (2, -1))),
        ],
    ),
    "view with a size": (
        torch.reshape,
        [
            Lambda(lambda m, x: x.view(x.size(0), -1)),
            Lambda(lambda m, x: x.reshape(x.shape[0], -1)),
            Lambda(lambda m, x: torch.reshape(x, (x.size(0), -1))),
        ],
    ),
    "max_pool": (
        F.max_pool2d,
        [
            nn.Sequential(nn.MaxPool2d(2)),
            Lambda(lambda m, x: F.max_pool2d(x, 2)),
            Lambda(lambda m, x: F.max_pool2d(x, kernel_size=(2, 2), stride=2)),
            Lambda(lambda m, x: torch.max_pool2d(x, 2)),
        ],
    ),
}
CASES = [
    pytest.param(canonical, model, id=f"{name}-{i}")
    for name, (canonical, models) in SPELLINGS.items()
    for i, model in enumerate(models)
]


@pytest.mark.parametrize(("canonical", "model"), CASES)
def test_every_spelling_becomes_the_canonical_call(canonical: Callable[..., Any], model: nn.Module) -> None:
    x = images()
    gm = normalized(model)
    last = computed(gm)[-1]
    assert (last.op, last.target) == ("call_function", canonical)
    assert all(isinstance(a, fx.Node) for a in last.args), "parameters stand in kwargs"
    assert "inplace" not in last.kwargs
    assert torch.equal(gm(x.clone()), model(x.clone()))


def test_spellings_with_equal_parameters_are_equal_nodes() -> None:
    flattens = [computed(normalized(m))[-1].kwargs for m in SPELLINGS["view"][1]]
    assert all(kwargs == {"shape": (2, -1)} for kwargs in flattens)


@pytest.mark.parametrize("name", SPELLINGS)
def test_normalizing_again_changes_nothing(name: str) -> None:
    for model in SPELLINGS[name][1]:
        gm = normalized(model)
        assert normalize(gm) == 0


def relu_method(m: nn.Module, x: Tensor) -> Tensor:
    a = x * 1
    b = a.relu_()
    return a + b


def relu_keyword(m: nn.Module, x: Tensor) -> Tensor:
    a = x * 1
    b = F.relu(a, inplace=True)
    return a + b


def relu_positional(m: nn.Module, x: Tensor) -> Tensor:
    a = x * 1
    b = F.relu(a, True)
    return a + b


def hardtanh_positional(m: nn.Module, x: Tensor) -> Tensor:
    a = x * 1
    b = F.hardtanh(a, -0.5, 0.5, True)
    return a + b


def augmented(m: nn.Module, x: Tensor) -> Tensor:
    a = x * 1
    b = a
    b += 1
    return a + b


def earlier_reader(m: nn.Module, x: Tensor) -> Tensor:
    a = x * 1
    before = a + 1
    a.mul_(3)
    return a + before


def twice(m: nn.Module, x: Tensor) -> Tensor:
    a = x * 1
    a.add_(1)
    a.relu_()
    return a * 2


def of_a_view(m: nn.Module, x: Tensor) -> Tensor:
    a = x * 1
    a.view(-1).add_(1)
    return a


def through_a_view(m: nn.Module, x: Tensor) -> Tensor:
    a = x * 1
    flat = a.flatten(1)
    a.relu_()
    return flat + 1


def unknown_op(m: nn.Module, x: Tensor) -> Tensor:
    a = x * 1
    b = a.exp_()
    return a + b


@pytest.mark.parametrize(
    "function",
    [
        relu_method,
        relu_keyword,
        relu_positional,
        hardtanh_positional,
        earlier_reader,
        twice,
        unknown_op,
        augmented,
    ],
)
def test_in_place_ops_keep_what_is_read_later(function: Function) -> None:
    x = images()
    model = Lambda(function)
    assert torch.equal(normalized(model)(x.clone()), model(x.clone()))


@pytest.mark.parametrize("function", [of_a_view, through_a_view])
def test_in_place_ops_on_views_read_later_are_refused(function: Function) -> None:
    with pytest.raises(fxquant.CaptureError, match=r"shares, which is read later.*out of place"):
        normalized(Lambda(function))


def test_an_in_place_module_keeps_what_is_read_later() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        a = m.conv(x)
        b = m.act(a)
        return torch.add(a, b)

    model = Lambda(forward, conv=nn.Conv2d(3, 4, 1), act=nn.ReLU(inplace=True)).eval()
    x = images()
    assert torch.allclose(normalized(model)(x), model(x))
    q = compiled(model)
    assert sqnr(model(x), q(x)) > 25


class FunctionalLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 2, 3, 3))
        self.shift = nn.Parameter(torch.randn(6))
        self.matrix = nn.Parameter(torch.randn(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.kernel, self.shift, stride=2, padding=1, groups=2)
        return F.linear(y.mean((2, 3)), self.matrix)


def test_functional_layers_over_parameters_become_modules() -> None:
    model = FunctionalLayers()
    gm = normalized(model)
    layers = [gm.get_submodule(str(n.target)) for n in computed(gm) if n.op == "call_module"]
    assert [type(m) for m in layers] == [nn.Conv2d, nn.Linear]
    x = images(channels=4)
    assert torch.allclose(gm(x), model(x), atol=1e-6)


def test_functional_layers_run_in_int8() -> None:
    model = FunctionalLayers()
    batches = [images(channels=4) for _ in range(3)]
    q = compiled(model, batches)
    assert row(q, "conv2d").precision == row(q, "linear").precision == "int8"
    assert sqnr(model(batches[0]), q(batches[0])) > 25


def test_untraceable_forward_names_module_and_line() -> None:
    with pytest.raises(CaptureError) as caught:
        fxquant.compile(Controlled(), calibration=[images()])
    message = str(caught.value)
    line = Branchy.forward.__code__.co_firstlineno + 1
    assert "'inner.0' (Branchy)" in message
    assert f"toys.py:{line}" in message
    assert "# the branch" in message, "the code of that line"
    assert "leaf_modules=['inner.0']" in message


def test_untraceable_root_is_named() -> None:
    with pytest.raises(CaptureError, match=r"\(root\).*\(Branchy\).*toys\.py:\d+"):
        fxquant.prepare(Branchy())


@pytest.mark.parametrize("leaves", [["inner.0"], ["inner"], [Branchy]])
def test_leaf_modules_stay_whole_and_in_fp32(leaves: list[Any]) -> None:
    model = Controlled().eval()
    x = images()
    q = compiled(model, [x, images()], leaf_modules=leaves)
    assert sqnr(model(x), q(x)) > 25
    inner = [r for r in q.report.rows if r.node.startswith("inner")]
    assert [r.precision for r in inner] == ["fp32"]
    assert inner[0].reason


def test_a_leaf_still_branches_on_its_values() -> None:
    model = Controlled().eval()
    x = images()
    with torch.no_grad():
        model.first.weight.abs_()
        assert model.first.bias is not None
        model.first.bias.zero_()
    up, down = x.abs(), -x.abs()
    q = compiled(model, [up, down], leaf_modules=["inner"])
    assert sqnr(model(up), q(up)) > 20 and sqnr(model(down), q(down)) > 20


def test_leaf_modules_that_match_nothing() -> None:
    with pytest.raises(ConfigError, match=r"no module 'iner'.*Did you mean 'inner'"):
        fxquant.prepare(Controlled(), leaf_modules=["iner"])
    with pytest.raises(ConfigError, match=r"no module of class Linear"):
        fxquant.prepare(Controlled(), leaf_modules=[nn.Linear])
    with pytest.raises(ConfigError, match=r"must be a list"):
        fxquant.prepare(Controlled(), leaf_modules="inner")
    with pytest.raises(ConfigError, match="leaf_modules: no module ''"):
        fxquant.prepare(Controlled(), leaf_modules=[""])
    with pytest.raises(ConfigError, match="leaf_modules must be a list of paths and classes, got None alone"):
        fxquant.prepare(Controlled(), leaf_modules=None)
    with pytest.raises(ConfigError, match=r"leaf_modules: Linear\(.*\) is neither a module's path nor a class"):
        fxquant.prepare(Controlled(), leaf_modules=[nn.Linear(1, 1)])


def fake_stub(name: str) -> nn.Module:
    """A stub as torch's eager workflow has it, which fxquant knows by its name alone."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return x

    origin = "torch.ao.quantization.stubs"
    cls = type(name, (nn.Module,), {"forward": forward, "__module__": origin})
    instance: nn.Module = cls()
    return instance


def test_stubs_bound_the_quantized_region() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.dequant(m.inside(m.quant(m.before(x))))
        return m.after(y)

    model = Lambda(
        forward,
        before=nn.Conv2d(3, 4, 1), inside=nn.Conv2d(4, 4, 1), after=nn.Conv2d(4, 4, 1),
        quant=fake_stub("QuantStub"), dequant=fake_stub("DeQuantStub"),
    ).eval()  # fmt: skip
    x = images()
    q = compiled(model, [x])
    precision = {r.node: r.precision for r in rows_of_convs(q)}
    assert precision == {"before": "fp32", "inside": "int8", "after": "fp32"}
    outside = [r.reason for r in rows_of_convs(q) if r.precision == "fp32"]
    assert all("QuantStub" in reason for reason in outside)
    assert sqnr(model(x), q(x)) > 25


def rows_of_convs(q: fxquant.QuantizedModule) -> list[fxquant.Row]:
    return [r for r in q.report.rows if r.op.startswith("conv")]


def test_layers_called_by_keyword() -> None:
    model = Lambda(
        lambda m, x: m.head(input=m.same(input=m.bn(input=m.conv(input=x))).mean((2, 3))),
        conv=nn.Conv2d(3, 4, 1), bn=nn.BatchNorm2d(4), same=nn.Identity(), head=nn.Linear(4, 2),
    ).eval()  # fmt: skip
    x = images()
    q = compiled(model, [x])
    assert sqnr(model(x), q(x)) > 25
    assert row(q, "conv2d").precision == "int8"


def test_parameter_names_are_those_of_the_model() -> None:
    model = small()
    assert list(capture(model).state_dict()) == list(model.state_dict())


def test_report_names_the_users_line() -> None:
    q = compiled(small())
    line = row(q, "linear").line
    assert line is not None and "toys.py" in line and "self.head" in line
