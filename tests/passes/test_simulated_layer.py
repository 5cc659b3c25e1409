"""Layers that round their weights in training, with the batch normalization after them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantConfig
from fxquant.backends.base.backend import Target
from fxquant.backends.reference import ReferenceBackend
from fxquant.backends.x86 import X86Backend
from fxquant.passes.dynamic.layer_maker import row_of
from fxquant.passes.layers.weight_grid import LayerWeight
from fxquant.passes.rewrites.fold_batchnorm import fold
from fxquant.passes.training.simulated_layer import SimulatedLayer
from fxquant.passes.training.weight_fake_quantize import WeightFakeQuantize

REFERENCE = ReferenceBackend()
LAYERS: dict[str, tuple[nn.Module, nn.Module, tuple[int, ...]]] = {
    "conv": (nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), (4, 3, 5, 5)),
    "conv without bias": (nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), (4, 3, 5, 5)),
    "depthwise": (nn.Conv2d(6, 6, 3, stride=2, groups=6), nn.BatchNorm2d(6), (4, 6, 7, 7)),
    "same padding": (nn.Conv1d(3, 4, 3, padding="same", dilation=2), nn.BatchNorm1d(4), (4, 3, 9)),
    "conv3d": (nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4), (3, 2, 4, 4, 4)),
    "transposed": (nn.ConvTranspose2d(3, 6, 3, 2, 1, 1), nn.BatchNorm2d(6), (4, 3, 4, 4)),
    "linear": (nn.Linear(7, 5), nn.BatchNorm1d(5), (8, 7)),
    "without affine": (nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6, affine=False), (4, 3, 5, 5)),
}


def made(name: str) -> tuple[Any, Any, Tensor]:
    """A layer and a normalization with statistics that are not at their start, and an input."""
    layer, norm, shape = copy.deepcopy(LAYERS[name])
    assert isinstance(norm.running_mean, Tensor) and isinstance(norm.running_var, Tensor)
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 4)
        for parameter in norm.parameters():
            parameter.uniform_(-1.5, 1.5)
    return layer, norm, torch.randn(shape)


def simulated(layer: nn.Module, norm: nn.Module | None, config: QuantConfig | None = None) -> SimulatedLayer:
    result = SimulatedLayer("layer", layer, norm, row_of(layer))
    result.round_weight(config or QuantConfig(), REFERENCE)
    return result


def unrounded(layer: nn.Module, norm: nn.Module, monkeypatch: pytest.MonkeyPatch) -> SimulatedLayer:
    monkeypatch.setattr(WeightFakeQuantize, "forward", lambda self, weight: weight)
    return simulated(layer, norm)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_without_rounding_it_is_the_layer_and_its_normalization(
    name: str, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs, gradients and running statistics, in fp32 rounding."""
    layer, norm, x = made(name)
    norm.train(training)
    plain_layer, plain_norm = copy.deepcopy((layer, norm))
    given, expected = unrounded(layer, norm, monkeypatch)(x), plain_norm(plain_layer(x))
    assert torch.allclose(given, expected, atol=1e-4)
    weights = torch.linspace(-1, 1, given.numel()).reshape(given.shape)
    (given * weights).sum().backward()
    (expected * weights).sum().backward()
    for ours, theirs in zip(
        (*layer.parameters(), *norm.parameters()), (*plain_layer.parameters(), *plain_norm.parameters()), strict=True
    ):
        # The bias in front of a normalization by batch statistics has no gradient but rounding.
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-3, atol=1e-3)
    for ours, theirs in zip(norm.buffers(), plain_norm.buffers(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("weight", ["per_channel_symmetric", "per_tensor_symmetric", "per_channel_affine"])
@pytest.mark.parametrize("name", LAYERS)
def test_in_eval_mode_it_is_the_folded_layer_on_its_integers(name: str, weight: Any) -> None:
    layer, norm, x = made(name)
    norm.eval()
    layers = simulated(layer, norm, QuantConfig(weight=weight, weight_bits=4))
    given, rounded = layers(x), layers.integers()
    assert rounded is not None and int(rounded.integers.max()) <= 7
    folded = copy.deepcopy(layer)
    fold(folded, norm, layers.row)
    folded.weight = nn.Parameter(rounded.dequantized())
    assert torch.allclose(given, folded(x), atol=1e-4)


def test_in_training_the_folded_weight_is_what_is_rounded() -> None:
    """With the statistics of the batch equal to the running ones, training gives what eval mode gives."""
    layer, norm, x = made("conv")
    norm.momentum, norm.eps = 1.0, 1e-3
    layers = simulated(layer, norm, QuantConfig(weight_bits=3))
    for _ in range(30):  # rounding depends on the running variance, and the variance on rounding: a fixed point
        layers(x)
    batch = layers(x)
    unbiased = x[:, 0].numel() / (x[:, 0].numel() - 1)
    with torch.no_grad():
        norm.running_var.div_(unbiased)
    assert torch.allclose(batch, norm.eval() and layers(x), atol=0.02)


def test_a_channel_with_gamma_zero_gives_its_beta_and_no_nan() -> None:
    layer, norm, x = made("conv")
    with torch.no_grad():
        norm.weight[2] = 0
    layers = simulated(layer, norm)
    for training in (True, False):
        norm.train(training)
        given = layers(x)
        assert torch.allclose(given[:, 2], norm.bias[2].expand_as(given[:, 2]), atol=1e-5)
        given.sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in (*layer.parameters(), *norm.parameters()))


@pytest.mark.parametrize("scales", ["moving_average", "learned"])
def test_scales_never_fall_below_what_the_kernels_compute(scales: Any) -> None:
    backend = X86Backend(Target(vnni=False))
    layer = nn.Linear(8, 4)
    of = LayerWeight(layer, row_of(layer), QuantConfig(scales=scales), backend)
    rounds = WeightFakeQuantize("layer", of, layer.weight)
    for frozen in (False, True):
        if frozen:
            rounds.freeze(layer.weight)
        with torch.no_grad():
            layer.weight.mul_(3)
        floor = backend.weight_scale_floor(layer, layer.weight, None)
        assert floor is not None and (rounds.grid(layer.weight).scale >= floor).all()


def test_frozen_scales_stay_whatever_the_weight_does() -> None:
    layer = nn.Linear(8, 4)
    of = LayerWeight(layer, row_of(layer), QuantConfig(), REFERENCE)
    rounds = WeightFakeQuantize("layer", of, layer.weight)
    rounds.freeze(layer.weight)
    before = rounds.grid(layer.weight).scale
    assert torch.equal(rounds.grid(layer.weight * 0.5).scale, before)


def test_an_embedding_with_sparse_gradients_trains() -> None:
    layer = nn.Embedding(9, 4, sparse=True)
    simulated(layer, None)(torch.tensor([1, 2])).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad[1].tolist() == [1] * 4
