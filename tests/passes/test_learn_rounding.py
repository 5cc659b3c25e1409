"""Learned rounding: nearer at the output than to the nearest, one step at most, the same every time."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant import QuantConfig
from tests.compiler.toys import Lambda, compiled, sqnr

pytestmark = pytest.mark.usefixtures("one_thread")


def config(rounding: Any, bits: int = 4, **options: Any) -> QuantConfig:
    return QuantConfig(weight_bits=bits, rounding=rounding, smooth=False, correct_bias=False, **options)


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 10)).eval()


def smooth_images(count: int, seed: int) -> Tensor:
    """Images whose channels and pixels go together: only then can one weight make up for another."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    coarse = F.interpolate(torch.randn(count, 3, 3, 3, generator=draw), size=(6, 6), mode="bilinear")
    return torch.einsum("nkhw,kc->nchw", coarse, mix) + 0.05 * torch.randn(count, 8, 6, 6, generator=draw)


@functools.cache
def result(rounding: Any, bits: int, run: int = 0) -> fxquant.QuantizedModule:
    return compiled(network(), [smooth_images(32, i) for i in range(4)], config=config(rounding, bits))


def integers(q: fxquant.QuantizedModule, path: str) -> Tensor:
    return q.graph.get_buffer(f"{path}_int8_weight")


@pytest.mark.parametrize("bits", [3, 4])
def test_the_output_error_falls(bits: int) -> None:
    x = smooth_images(256, 9)
    with torch.no_grad():
        exact = network()(x)
        nearest, learned = (sqnr(exact, result(r, bits)(x)) for r in ("nearest", "learned"))
    # Over several seeds it is 3.5 to 6 dB: a third to a half of the noise amplitude.
    assert learned > nearest + 2, (nearest, learned)
    reasons = [r.reason for r in result("learned", bits).report.rows if r.op.startswith(("conv", "linear"))]
    assert len(reasons) == 2 and all("rounding learned: output error" in r for r in reasons)
    assert not any("rounding" in r.reason for r in result("nearest", bits).report.rows)


@pytest.mark.parametrize("path", ["0", "3"])
@pytest.mark.parametrize("bits", [3, 4])
def test_integers_are_one_of_the_two_neighbors(path: str, bits: int) -> None:
    nearest, learned = (integers(result(r, bits), path).float() for r in ("nearest", "learned"))
    scales = [result(r, bits).graph.get_buffer(f"{path}_int8_scale") for r in ("nearest", "learned")]
    assert torch.equal(*scales)
    steps = network().get_parameter(f"{path}.weight").detach()
    steps = steps / scales[0].reshape(-1, *[1] * (steps.dim() - 1))
    bound = 2 ** (bits - 1) - 1
    up = learned - steps.floor().clamp(-bound, bound)
    assert set(up.unique().tolist()) <= {0.0, 1.0} and learned.abs().max() <= bound
    assert 0.02 < float((learned != nearest).float().mean()) < 0.6
    assert torch.equal(nearest, steps.round().clamp(-bound, bound))


def test_the_same_data_gives_the_same_integers() -> None:
    first, second = result("learned", 4), result("learned", 4, run=1)
    assert first is not second
    assert all(torch.equal(integers(first, p), integers(second, p)) for p in "03")


def test_without_time_weights_are_rounded_to_the_nearest() -> None:
    q = compiled(network(), [smooth_images(32, i) for i in range(4)], config=config("learned", rounding_seconds=1e-9))
    reasons = [r.reason for r in q.report.rows if r.op.startswith(("conv", "linear"))]
    assert all("rounded to nearest: rounding_seconds is used up" in r for r in reasons)
    assert all(torch.equal(integers(q, p), integers(result("nearest", 4), p)) for p in "03")


def test_only_the_layers_asked_for_are_learned() -> None:
    chosen = config("nearest", rounding_seconds=0.2, overrides={"3": config("learned")})
    q = compiled(network(), [smooth_images(32, i) for i in range(4)], config=chosen)
    assert torch.equal(integers(q, "0"), integers(result("nearest", 4), "0"))
    reasons = {r.node: r.reason for r in q.report.rows}
    assert "rounding" not in reasons["0"] and "rounding" in reasons["3"]


def test_a_layer_called_twice_is_refused() -> None:
    model = Lambda(lambda m, x: m.a(m.a(x).relu()), a=nn.Linear(6, 6)).eval()
    batches = [torch.randn(32, 6)]
    learned, nearest = (compiled(model, batches, config=config(r)) for r in ("learned", "nearest"))
    assert all("rounded to nearest: the layer is called more than once" in r.reason for r in learned.report.rows)
    assert torch.equal(integers(learned, "a"), integers(nearest, "a"))


@pytest.mark.parametrize("weight", ["per_tensor_symmetric", "per_channel_affine", "per_tensor_affine"])
def test_every_kind_of_grid(weight: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8)).eval()
    mix = torch.randn(3, 16)
    batches, x = [torch.randn(64, 3) @ mix for _ in range(4)], torch.randn(512, 3) @ mix
    with torch.no_grad():
        nearest, learned = (
            sqnr(model(x), compiled(model, batches, config=config(r, 3, weight=weight))(x))
            for r in ("nearest", "learned")
        )
    assert learned > nearest + 2, (nearest, learned)


def test_a_layer_without_any_error_is_left_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4)).eval()
    with torch.no_grad():
        model.get_parameter("2.weight").zero_()
    q = compiled(model, [torch.randn(16, 6) for _ in range(2)], config=config("learned", rounding_seconds=0.2))
    assert not integers(q, "2").any()


def test_inputs_without_a_batch_axis_compile() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    batches = [torch.randn(6) for _ in range(4)]
    assert compiled(model, batches, config=config("learned", rounding_seconds=0.2))(batches[0]).shape == (3,)
