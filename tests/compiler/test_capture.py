"""What is traced, what stays whole, and what cannot be traced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant import CaptureError, ConfigError
from fxquant.compiler.capture.capture import capture

from .toys import Branchy, Controlled, Lambda, compiled, computed, images, normalized, row, small, sqnr


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
        fxquant.sensitivity(Controlled(), [images()])
    message = str(caught.value)
    line = Branchy.forward.__code__.co_firstlineno + 1
    assert "'inner.0' (Branchy)" in message
    assert f"toys.py:{line}" in message
    assert "# the branch" in message, "the code of that line"
    assert "leaf_modules=['inner.0']" in message


def test_untraceable_root_is_named() -> None:
    with pytest.raises(CaptureError, match=r"\(root\).*\(Branchy\).*toys\.py:\d+"):
        fxquant.sensitivity(Branchy(), [images()])


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
