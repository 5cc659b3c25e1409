"""Whole models train, and their int8 form agrees."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant import QuantConfig
from fxquant.compiler.cli.demo import accuracy, conv_bn, load_digits
from tests.models import batches, settled

from .toys import fit, head


@pytest.mark.parametrize("name", ["mobilenet_v3_large", "resnet18", "shufflenet_v2", "densenet", "unet", "vit"])
def test_models_of_the_zoo_train_and_agree_with_their_int8_form(name: str) -> None:
    calibration = batches(name, 1)
    q = fxquant.prepare(settled(name), scheme="qat", calibration=calibration).train()
    q(*calibration[0]).square().mean().backward()
    assert [n for n, p in q.named_parameters() if p.grad is None] == []
    assert "no layer differs by more than one quantization step" in fxquant.convert(q).report.remark


class SqueezeExcite(nn.Module):
    """The gate of MobileNetV3 (Howard et al. 2019, arXiv:1905.02244)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // 4, 1),
            nn.ReLU(),
            nn.Conv2d(channels // 4, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x * self.gate(x)
        return result


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv_bn(channels, channels, 3), nn.ReLU(), *conv_bn(channels, channels, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


def mobilenet_v3_style() -> nn.Sequential:
    return nn.Sequential(
        *(*conv_bn(1, 16, 3, 2), nn.Hardswish(), *conv_bn(16, 48, 1), nn.Hardswish()),
        *(*conv_bn(48, 48, 3, 2, groups=48), nn.Hardswish(), SqueezeExcite(48), *conv_bn(48, 24, 1)),
        *(*conv_bn(24, 96, 1), nn.Hardswish()),
        *head(96),
    )


def residual_style() -> nn.Sequential:
    return nn.Sequential(*conv_bn(1, 24, 3, 2), nn.ReLU(), Residual(24), *conv_bn(24, 32, 3, 2), nn.ReLU(), *head(32))


@pytest.mark.parametrize("build", [mobilenet_v3_style, residual_style])
def test_models_converge_with_weights_of_four_bits(build: Callable[[], nn.Sequential]) -> None:
    digits, model = load_digits(), build()
    fit(model, 1e-2, epochs=8)
    config = QuantConfig(weight_bits=4, scales="learned")
    q = fxquant.prepare(model, scheme="qat", calibration=[digits.train[0][:32]], config=config)
    fit(q, 1e-3, epochs=5)
    done = fxquant.convert(q)
    assert accuracy(done, *digits.test) > accuracy(model, *digits.test) - 6
    with torch.no_grad():
        agree = done(digits.test[0]).argmax(1) == q(digits.test[0]).argmax(1)
    assert agree.float().mean() >= 0.99
