"""Models of which a part stays Python: branches on values, other libraries, loops over data, kept states."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import ConfigError, FallbackWarning, ModelError, QuantConfig
from fxquant.compiler.numerics.metrics import sqnr

from .dynamic_toys import seeded
from .test_export import tensors
from .toys import Controlled, images

WIDTH = 32


def layers(inputs: int = WIDTH, outputs: int = WIDTH) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, outputs))


def rows(count: int = 8) -> Tensor:
    return torch.randn(count, WIDTH)


class Experts(nn.Module):
    """A mixture of experts: each row goes through the expert that the gate chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(WIDTH, 3), nn.ModuleList([layers() for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x).softmax(-1)
        chosen, out = weights.argmax(-1), torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            if (chosen == i).any():
                out[chosen == i] = expert(x[chosen == i])
        return out


class Around(nn.Module):
    """An island between layers."""

    def __init__(self, island: nn.Module) -> None:
        super().__init__()
        self.first, self.island, self.last = layers(), island, layers(outputs=5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.island(self.first(x)))
        return y


class OwnCode(nn.Module):
    """A forward from a function, over layers ``a`` and ``b``."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function, self.a, self.b = function, layers(), layers(outputs=5)

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)

    def encode(self, x: Tensor) -> Tensor:
        while x.norm() > 3:
            x = self.a(x) * 0.5
        return x


def numpy_inside(m: OwnCode, x: Tensor) -> Any:
    return {"y": m.b(torch.from_numpy(np.tanh(m.a(x).detach().numpy())))}


def loop_over_data(m: OwnCode, x: Tensor, count: Tensor) -> Any:
    for _ in range(int(count)):
        x = x + m.a(x)
    return m.b(x)


def a_method(m: OwnCode, x: Tensor) -> Any:
    return m.b(m.encode(x))


def any_number_of_inputs(m: OwnCode, *xs: Tensor) -> Any:
    return m.b(sum(m.a(x) for x in xs))


def layers_by_index(m: OwnCode, x: Tensor) -> Any:
    for layer in m.a:
        x = layer(x) if x.abs().max() > 0 else x
    return m.b(x)


def compared(q: Any, model: nn.Module, *inputs: Any) -> float:
    with torch.no_grad():
        expected, given = tensors(model(*inputs)), tensors(q(*inputs))
    assert [t.shape for t in expected] == [t.shape for t in given]
    return sqnr(expected, given)


@pytest.mark.parametrize(
    ("function", "more"),
    [
        (numpy_inside, ()),
        (loop_over_data, (torch.tensor(2),)),
        (a_method, ()),
        (any_number_of_inputs, (rows(), rows())),
        (layers_by_index, ()),
    ],
)
def test_the_model_itself_as_an_island(function: Callable[..., Any], more: Any) -> None:
    model = seeded(lambda: OwnCode(function))
    q = fxquant.compile(model, calibration=[(rows(), *more) for _ in range(3)])
    assert list(q.report.islands) == [""] and q.report.quantized_share == 1
    assert "the model stays Python" in str(q) and "100% of the weights are quantized" in str(q)
    few = tuple(t[:3] if t.dim() else t for t in more)
    for inputs in ((rows(), *more), (rows(3), *few)):
        assert compared(q, model, *inputs) > 25
        assert compared(copy.deepcopy(q), model, *inputs) > 25


def test_an_island_in_a_graph() -> None:
    model = seeded(lambda: Around(Experts()))
    q = fxquant.compile(model, calibration=[rows(64) for _ in range(4)])
    assert list(q.report.islands) == ["island"] and "test_islands.py" in q.report.islands["island"]
    assert q.report.quantized_share == 1
    paths = [row.node for row in q.report.rows]
    assert (
        paths.index("first.0") < paths.index("island.gate") < paths.index("island.experts.2.0") < paths.index("last.0")
    )
    assert [n.target for n in q.graph.graph.nodes if n.op == "call_module"].count("island") == 1
    for count in (64, 1, 7):
        assert compared(q, model, rows(count)) > 25


def test_an_island_branches_in_every_call() -> None:
    """TorchScript would keep the branch of the example."""
    model = Controlled().eval()
    with torch.no_grad():
        model.first.weight.abs_()
    q = fxquant.compile(model, calibration=[images().abs(), -images().abs()])
    assert list(q.report.islands) == ["inner.0"]
    assert compared(q, model, images().abs()) > 20 and compared(q, model, -images().abs()) > 20
    with pytest.raises(ConfigError, match="executor='torchscript' cannot run this model"):
        fxquant.compile(model, calibration=[images()], executor="torchscript")


def test_an_island_in_an_island() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Around(Experts())
            self.scale = nn.Parameter(torch.ones(5))

        def forward(self, x: Tensor) -> Tensor:
            y = self.body(x)
            return y * self.scale if y.sum() != 0 else y

    model = seeded(Outer)
    q = fxquant.compile(model, calibration=[rows(64) for _ in range(2)])
    assert list(q.report.islands) == ["body.island", ""]
    assert compared(q, model, rows(16)) > 25


def test_what_calibration_does_not_call_stays_in_fp32() -> None:
    class Rare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.often, self.rarely = layers(), layers()

        def forward(self, x: Tensor) -> Any:
            return self.rarely(x) if x.mean() > 10 else self.often(x)

    model = seeded(Rare)
    q = fxquant.compile(model, calibration=[rows()])
    found = {row.node: row for row in q.report.rows}
    assert found["rarely.0"].precision == "fp32" and "not called in calibration" in found["rarely.0"].reason
    assert q.report.quantized_share == pytest.approx(0.5)
    assert torch.equal(q(rows() + 20) * 0, torch.zeros(8, WIDTH)) and compared(q, model, rows() + 20) > 100


def test_a_region_takes_other_calls_in_fp32() -> None:
    class Widths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor, double: bool = False) -> Tensor:
            y: Tensor = self.l(x)
            return y * 2 if double else y

    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = Widths()

        def forward(self, x: Tensor) -> Any:
            return self.part(x, bool(x.sum() > 0))

    model, up = seeded(Calls), rows().abs()
    q = fxquant.compile(model, calibration=[-up, up * 100])
    assert compared(q, model, -up) > 25
    with pytest.warns(FallbackWarning, match="'part' runs in fp32 in such calls: Input 'double' is True"):
        assert compared(q, model, up) > 100
    assert compared(q, model, up) > 100


def test_overrides_and_leaf_modules_reach_into_islands() -> None:
    model = seeded(lambda: Around(Experts()))
    data = [rows(64)]
    overrides: dict[str | type[nn.Module], Any] = {"island.experts.0.*": None, "first": None}
    q = fxquant.compile(model, calibration=data, config=QuantConfig(overrides=overrides), leaf_modules=["island.gate"])
    fp32 = {row.node for row in q.report.rows if row.precision == "fp32"}
    assert {"first.0", "first.2", "island.experts.0", "island.gate"} <= fp32
    assert not {"last.0", "island.experts.1.0"} & fp32
    assert compared(q, model, data[0]) > 25
    with pytest.raises(ConfigError, match=r"'island\.experts\.7' matches nothing"):
        fxquant.compile(model, calibration=data, config=QuantConfig(overrides={"island.experts.7": None}))


def test_calibration_by_calls() -> None:
    model = seeded(lambda: Around(Experts()))
    q = fxquant.compile(model)
    x = rows(64)
    assert torch.allclose(q(x), model(x), atol=1e-5)
    q(x * 0.5)
    assert compared(q.freeze(), model, x) > 25


def test_a_model_of_an_island_alone_has_nothing_to_quantize() -> None:
    class Alone(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelError, match=r"(?s)nothing to quantize.*test_islands\.py"):
        fxquant.compile(Alone().eval(), calibration=[rows()])


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    fxquant.compile(seeded(lambda: Around(Experts())), calibration=[rows(64)])
    assert capfd.readouterr() == ("", "")
