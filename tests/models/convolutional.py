"""Convolutional networks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import (
    ConvBNAct,
    Residual,
    SqueezeExcite,
    hardswish,
    inverted_residual,
    named,
    pooled_classifier,
    relu,
    relu6,
    scaled,
    silu,
)


def resnet(blocks: Sequence[int], bottleneck: bool, num_classes: int, width: float) -> nn.Sequential:
    """ResNet (v1.5: a bottleneck strides in its 3x3 convolution): [N,3,H,W] -> [N,num_classes]."""
    cin = scaled(64, width)
    stages: list[nn.Module] = []
    for index, repeats in enumerate(blocks):
        channels = scaled(64, width) << index
        cout = 4 * channels if bottleneck else channels
        for position in range(repeats):
            stride = 2 if index and not position else 1
            if bottleneck:
                body = nn.Sequential(
                    ConvBNAct(cin, channels),
                    ConvBNAct(channels, channels, 3, stride),
                    ConvBNAct(channels, cout, act=None),
                )
            else:
                body = nn.Sequential(ConvBNAct(cin, cout, 3, stride), ConvBNAct(cout, cout, 3, act=None))
            shortcut = ConvBNAct(cin, cout, 1, stride, act=None) if stride > 1 or cin != cout else None
            stages.append(Residual(body, shortcut, relu()))
            cin = cout
    return named(
        stem=ConvBNAct(3, scaled(64, width), 7, 2),
        pool=nn.MaxPool2d(3, 2, 1),
        features=nn.Sequential(*stages),
        head=pooled_classifier(cin, num_classes),
    )


def resnet18(num_classes: int = 1000, width: float = 1.0) -> nn.Sequential:
    """ResNet-18: [N,3,224,224] -> [N,num_classes]."""
    return resnet((2, 2, 2, 2), False, num_classes, width)


def resnet50(num_classes: int = 1000, width: float = 1.0) -> nn.Sequential:
    """ResNet-50: [N,3,224,224] -> [N,num_classes]."""
    return resnet((3, 4, 6, 3), True, num_classes, width)


MOBILENET_V2 = (  # expansion, channels, repeats, stride of the first repeat
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip


def mobilenet_v2(
    num_classes: int = 1000, width: float = 1.0,
    settings: Sequence[tuple[int, int, int, int]] = MOBILENET_V2, stem_stride: int = 2,
    in_channels: int = 3, stem_channels: int = 32, last_channels: int = 1280, dropout: float = 0.2,
) -> nn.Sequential:  # fmt: skip
    """MobileNetV2: [N,in_channels,H,W] -> [N,num_classes].

    For 8x8 to 32x32 images pass `stem_stride=1` and shorter `settings` with fewer strides; the rows are
    (expansion, channels, repeats, stride of the first repeat).
    """
    conv = partial(ConvBNAct, act=relu6)
    cin = scaled(stem_channels, width)
    layers: list[nn.Module] = [conv(in_channels, cin, 3, stem_stride)]
    for expansion, channels, repeats, stride in settings:
        cout = scaled(channels, width)
        for position in range(repeats):
            layers.append(inverted_residual(cin, cin * expansion, cout, 3, 1 if position else stride, conv))
            cin = cout
    last = scaled(last_channels, max(1.0, width))
    layers.append(conv(cin, last))
    return named(features=nn.Sequential(*layers), head=pooled_classifier(last, num_classes, dropout))


MOBILENET_V3_LARGE = (  # kernel, expanded channels, channels, squeeze-excite, activation, stride
    (3, 16, 16, False, relu, 1), (3, 64, 24, False, relu, 2), (3, 72, 24, False, relu, 1),
    (5, 72, 40, True, relu, 2), (5, 120, 40, True, relu, 1), (5, 120, 40, True, relu, 1),
    (3, 240, 80, False, hardswish, 2), (3, 200, 80, False, hardswish, 1), (3, 184, 80, False, hardswish, 1),
    (3, 184, 80, False, hardswish, 1), (3, 480, 112, True, hardswish, 1), (3, 672, 112, True, hardswish, 1),
    (5, 672, 160, True, hardswish, 2), (5, 960, 160, True, hardswish, 1), (5, 960, 160, True, hardswish, 1),
)  # fmt: skip


def mobilenet_v3_large(num_classes: int = 1000, width: float = 1.0) -> nn.Sequential:
    """MobileNetV3-Large: [N,3,224,224] -> [N,num_classes]."""
    conv = partial(ConvBNAct, eps=1e-3)
    cin = scaled(16, width)
    layers: list[nn.Module] = [conv(3, cin, 3, 2, act=hardswish)]
    for kernel, inner, channels, squeeze, act, stride in MOBILENET_V3_LARGE:
        expanded, cout = scaled(inner, width), scaled(channels, width)
        excite = SqueezeExcite(expanded, scaled(expanded // 4, 1), relu, nn.Hardsigmoid) if squeeze else None
        block_conv = partial(ConvBNAct, act=act, eps=1e-3)
        layers.append(inverted_residual(cin, expanded, cout, kernel, stride, block_conv, excite))
        cin = cout
    layers.append(conv(cin, 6 * cin, act=hardswish))
    hidden = scaled(1280, width)
    head = pooled_classifier(6 * cin, hidden)
    head.extend((hardswish(), nn.Dropout(0.2), nn.Linear(hidden, num_classes)))
    return named(features=nn.Sequential(*layers), head=head)


EFFICIENTNET_B0 = (  # expansion, kernel, stride of the first repeat, channels, repeats
    (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4), (6, 3, 1, 320, 1),
)  # fmt: skip


def efficientnet_b0(num_classes: int = 1000, width: float = 1.0) -> nn.Sequential:
    """EfficientNet-B0, without its (training-only) stochastic depth: [N,3,224,224] -> [N,num_classes]."""
    conv = partial(ConvBNAct, act=silu)
    cin = scaled(32, width)
    layers: list[nn.Module] = [conv(3, cin, 3, 2)]
    for expansion, kernel, stride, channels, repeats in EFFICIENTNET_B0:
        cout = scaled(channels, width)
        for position in range(repeats):
            expanded = cin * expansion
            excite = SqueezeExcite(expanded, max(1, cin // 4), silu, nn.Sigmoid)
            step = 1 if position else stride
            layers.append(inverted_residual(cin, expanded, cout, kernel, step, conv, excite))
            cin = cout
    layers.append(conv(cin, 4 * cin))
    return named(features=nn.Sequential(*layers), head=pooled_classifier(4 * cin, num_classes, 0.2))


class ShuffleUnit(nn.Module):
    """ShuffleNetV2 unit: [N,cin,H,W] -> [N,cout,H/stride,W/stride]; at stride 1 half the channels pass by."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        half = cout // 2
        self.split = stride == 1
        self.shortcut = nn.Identity() if self.split else nn.Sequential(
            ConvBNAct(cin, cin, 3, stride, cin, act=None), ConvBNAct(cin, half)
        )  # fmt: skip
        self.body = nn.Sequential(
            ConvBNAct(half if self.split else cin, half),
            ConvBNAct(half, half, 3, stride, half, act=None),
            ConvBNAct(half, half),
        )

    def forward(self, x: Tensor) -> Tensor:
        passed, worked = x.chunk(2, dim=1) if self.split else (x, x)
        x = torch.cat((self.shortcut(passed), self.body(worked)), dim=1)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2)
        return x.reshape(batch, channels, height, width)


class ShuffleNetV2(nn.Module):
    """ShuffleNetV2: [N,3,224,224] -> [N,num_classes]; `channels` are those of the three stages."""

    def __init__(self, num_classes: int = 1000, channels: Sequence[int] = (116, 232, 464)) -> None:
        super().__init__()
        cin = 24
        stages: list[nn.Module] = []
        for cout, repeats in zip(channels, (4, 8, 4), strict=True):
            stages.append(ShuffleUnit(cin, cout, 2))
            stages += [ShuffleUnit(cout, cout, 1) for _ in range(repeats - 1)]
            cin = cout
        self.stem = nn.Sequential(ConvBNAct(3, 24, 3, 2), nn.MaxPool2d(3, 2, 1))
        self.stages = nn.Sequential(*stages)
        self.last = ConvBNAct(cin, 1024)
        self.classifier = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.last(self.stages(self.stem(x))).mean((2, 3)))
        return out


class DenseLayer(nn.Module):
    """Pre-activation bottleneck, concatenated to its input: [N,C,H,W] -> [N,C+growth,H,W]."""

    def __init__(self, cin: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(cin),
            relu(),
            ConvBNAct(cin, 4 * growth),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.body(x)), dim=1)


class DenseNet(nn.Module):
    """DenseNet, by default smaller than DenseNet-121: [N,3,224,224] -> [N,num_classes]."""

    def __init__(self, num_classes: int = 1000, blocks: Sequence[int] = (4, 8, 6, 4), growth: int = 32) -> None:
        super().__init__()
        channels = 2 * growth
        layers: list[nn.Module] = [ConvBNAct(3, channels, 7, 2), nn.MaxPool2d(3, 2, 1)]
        for index, repeats in enumerate(blocks):
            if index:  # transition
                halve = nn.Conv2d(channels, channels // 2, 1, bias=False)
                layers += [nn.BatchNorm2d(channels), relu(), halve, nn.AvgPool2d(2)]
                channels //= 2
            layers += [DenseLayer(channels + position * growth, growth) for position in range(repeats)]
            channels += repeats * growth
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(channels))
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(F.relu(self.features(x)), (1, 1))
        out: Tensor = self.classifier(torch.flatten(x, 1))
        return out
