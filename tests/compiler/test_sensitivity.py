"""What each op costs in int8: against compilations in which the others are, or are not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxquant
from fxquant import ConfigError, QuantConfig
from fxquant.backends.base.backend import Target
from fxquant.compiler.capture.capture import capture
from fxquant.compiler.execution.replay import Replay
from fxquant.compiler.numerics.metrics import sqnr as sqnr_of

from .toys import Lambda, images, settle, small

VNNI = Target(vnni=True)  # no bounds on scales: the reference backend has none either
PLAIN: dict[str, Any] = dict.fromkeys(("equalize", "smooth", "absorb_bias", "correct_bias"), False)
LAYERS = ("0", "3", "5")


def compiled_sqnr(model: nn.Module, batches: list[Tensor], fp32: tuple[str, ...]) -> float:
    """SQNR of the reference backend's form with the layers at the paths ``fp32`` left in fp32."""
    config = QuantConfig(**PLAIN, overrides=dict.fromkeys(fp32))
    q = fxquant.compile(model, calibration=batches, config=config, backend="reference", target=VNNI)
    return sqnr_of([model(x) for x in batches], [q(x) for x in batches])


def test_each_op_costs_what_a_compilation_with_it_alone_costs() -> None:
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    model, batches = settle(nn.Sequential(*layers)), [images(8) for _ in range(3)]
    found = fxquant.sensitivity(model, batches, config=QuantConfig(**PLAIN), target=VNNI)
    rows = {row.node: row for row in found.rows}
    assert list(rows) == list(LAYERS)
    with torch.no_grad():
        assert found.int8 == pytest.approx(compiled_sqnr(model, batches, ()), abs=0.2)
        for layer in LAYERS:
            others = tuple(n for n in LAYERS if n != layer)
            assert rows[layer].only == pytest.approx(compiled_sqnr(model, batches, others), abs=0.2)
            assert rows[layer].but == pytest.approx(compiled_sqnr(model, batches, (layer,)), abs=0.2)


@pytest.mark.parametrize("metric", ["sqnr", "mse", "kl", lambda exact, other: float((exact - other).abs().max())])
def test_a_planted_fragile_layer_comes_first(metric: Any) -> None:
    layers = [
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 1),
        nn.Flatten(),
        nn.Linear(128, 5),
    ]
    model = nn.Sequential(*layers).eval()
    with torch.no_grad():
        # One weight is far out, and reads a channel that is always zero: it makes the scale of all others coarse.
        model.get_parameter("0.bias")[0] = -100
        model.get_parameter("2.weight")[0, 0, 0, 0] = 60
    config = QuantConfig(weight="per_tensor_symmetric", weight_bits=6, **PLAIN)
    found = fxquant.sensitivity(model, [images(8)], metric=metric, config=config)
    assert found.ranked[0].node == "2"
    assert str(found).splitlines()[3].startswith("2 ")


def test_an_op_between_int8_ones_costs_nothing_by_staying_fp32_alone() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            result: Tensor = self.b(torch.relu(y + self.b(y)))
            return result

    model = Sum()
    found = fxquant.sensitivity(model, [images()], config=QuantConfig(**PLAIN))
    by_op = {row.op: row for row in found.rows}
    config = QuantConfig(overrides={by_op["add + relu"].key: None})
    q = fxquant.compile(model, calibration=[images()], config=config)
    assert [row.op for row in q.report.rows if "override" in row.reason] == ["add + relu"]
    assert by_op["add + relu"].but == pytest.approx(found.int8) and by_op["add + relu"].only < 90


def test_a_changed_value_reaches_all_that_depends_on_it() -> None:
    gm, x = capture(small()), images()
    replay = Replay(gm, ((x,), {}))
    assert torch.equal(replay.with_value(next(iter(gm.graph.nodes)), x), replay.output)
    for node in gm.graph.nodes:
        if node.op == "output":
            continue
        changed = replay.values[node] * 1.5

        class Changed(fx.Interpreter):
            def run_node(self, n: fx.Node, node: fx.Node = node, changed: Tensor = changed) -> Any:
                return changed if n is node else super().run_node(n)

        with torch.no_grad():
            assert torch.equal(replay.with_value(node, changed), Changed(gm).run(x))


def test_what_draws_at_random_is_no_noise() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Lambda(lambda self, x: nn.functional.dropout(x, 0.5)), nn.Conv2d(4, 4, 1))
    found = fxquant.sensitivity(model, [images()], config=QuantConfig(**PLAIN))
    # Other values drawn would be 0 dB; those that the ranges did not see are clipped.
    assert found.int8 > 20 and all(row.only > 20 for row in found.rows)


def test_it_measures_and_changes_nothing() -> None:
    model = small().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fxquant.sensitivity(model, [images()])
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "match"),
    [({"metric": "psnr"}, "metric is 'psnr'.*'sqnr'"), ({"batches": 0}, "positive int")],
)
def test_bad_arguments_are_named(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        fxquant.sensitivity(small(), [images()], **options)
