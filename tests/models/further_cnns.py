"""Further convolutional networks, after the papers that they are named for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .layers import ConvBNAct, Residual, SqueezeExcite, inverted_residual, named, pooled_classifier, relu, scaled

MNASNET_A1 = (  # expansion, kernel, stride of the first repeat, channels, repeats, squeeze-excite
    (6, 3, 2, 24, 2, False), (3, 5, 2, 40, 3, True), (6, 3, 2, 80, 4, False), (6, 3, 1, 112, 2, True),
    (6, 5, 2, 160, 3, True), (6, 3, 1, 320, 1, False),
)  # fmt: skip


def mnasnet_a1(num_classes: int = 1000) -> nn.Sequential:
    """MnasNet-A1 (arXiv:1807.11626): [N,3,224,224] -> [N,num_classes]."""
    layers: list[nn.Module] = [ConvBNAct(3, 32, 3, 2), ConvBNAct(32, 32, 3, 1, 32), ConvBNAct(32, 16, act=None)]
    cin = 16
    for expansion, kernel, stride, channels, repeats, squeeze in MNASNET_A1:
        for position in range(repeats):
            inner = cin * expansion
            excite = SqueezeExcite(inner, max(1, cin // 4), relu, nn.Sigmoid) if squeeze else None
            layers.append(inverted_residual(cin, inner, channels, kernel, 1 if position else stride, ConvBNAct, excite))
            cin = channels
    layers.append(ConvBNAct(cin, 1280))
    return named(features=nn.Sequential(*layers), head=pooled_classifier(1280, num_classes))


def regnet_y_400mf(num_classes: int = 1000) -> nn.Sequential:
    """RegNetY-400MF (arXiv:2003.13678): [N,3,224,224] -> [N,num_classes]."""
    cin = 32
    layers: list[nn.Module] = [ConvBNAct(3, cin, 3, 2)]
    for channels, repeats in ((48, 1), (104, 3), (208, 6), (440, 6)):
        for position in range(repeats):
            stride = 1 if position else 2
            body = nn.Sequential(
                ConvBNAct(cin, channels),
                ConvBNAct(channels, channels, 3, stride, channels // 8),
                SqueezeExcite(channels, cin // 4, relu, nn.Sigmoid),
                ConvBNAct(channels, channels, act=None),
            )
            shortcut = ConvBNAct(cin, channels, 1, stride, act=None) if stride > 1 else None
            layers.append(Residual(body, shortcut, relu()))
            cin = channels
    return named(features=nn.Sequential(*layers), head=pooled_classifier(cin, num_classes))


class GhostModule(nn.Module):
    """Half of the channels from a convolution, half from a depthwise one on those: [N,cin,H,W] -> [N,cout,H,W]."""

    def __init__(self, cin: int, cout: int, act: bool = True) -> None:
        super().__init__()
        self.cout, half = cout, -(-cout // 2)
        self.primary = ConvBNAct(cin, half, act=relu if act else None)
        self.cheap = ConvBNAct(half, half, 3, groups=half, act=relu if act else None)

    def forward(self, x: Tensor) -> Tensor:
        first = self.primary(x)
        return torch.cat((first, self.cheap(first)), dim=1)[:, : self.cout]


GHOSTNET = (  # kernel, expanded channels, channels, squeeze-excite, stride
    (3, 16, 16, False, 1), (3, 48, 24, False, 2), (3, 72, 24, False, 1), (5, 72, 40, True, 2), (5, 120, 40, True, 1),
    (3, 240, 80, False, 2), (3, 200, 80, False, 1), (3, 184, 80, False, 1), (3, 184, 80, False, 1),
    (3, 480, 112, True, 1), (3, 672, 112, True, 1), (5, 672, 160, True, 2), (5, 960, 160, False, 1),
    (5, 960, 160, True, 1), (5, 960, 160, False, 1), (5, 960, 160, True, 1),
)  # fmt: skip


def ghostnet(num_classes: int = 1000) -> nn.Sequential:
    """GhostNet (arXiv:1911.11907): [N,3,224,224] -> [N,num_classes]."""
    cin = 16
    layers: list[nn.Module] = [ConvBNAct(3, cin, 3, 2)]
    for kernel, inner, channels, squeeze, stride in GHOSTNET:
        body: list[nn.Module] = [GhostModule(cin, inner)]
        if stride > 1:
            body.append(ConvBNAct(inner, inner, kernel, stride, inner, act=None))
        if squeeze:
            body.append(SqueezeExcite(inner, scaled(inner // 4, 1, 4), relu, nn.Hardsigmoid))
        body.append(GhostModule(inner, channels, act=False))
        shortcut = None
        if stride > 1 or cin != channels:
            shortcut = nn.Sequential(
                ConvBNAct(cin, cin, kernel, stride, cin, act=None), ConvBNAct(cin, channels, act=None)
            )
        layers.append(Residual(nn.Sequential(*body), shortcut))
        cin = channels
    layers += [ConvBNAct(cin, 960), nn.AdaptiveAvgPool2d(1), nn.Conv2d(960, 1280, 1), relu(), nn.Flatten()]
    return named(features=nn.Sequential(*layers), head=nn.Linear(1280, num_classes))


def repvgg_a0(num_classes: int = 1000) -> nn.Sequential:
    """RepVGG-A0 as deployed, with its branches merged (arXiv:2101.03697): [N,3,224,224] -> [N,num_classes]."""
    cin = 48
    layers: list[nn.Module] = [ConvBNAct(3, cin, 3, 2)]
    for channels, repeats in ((48, 2), (96, 4), (192, 14), (1280, 1)):
        for position in range(repeats):
            layers.append(ConvBNAct(cin, channels, 3, 1 if position else 2))
            cin = channels
    return named(features=nn.Sequential(*layers), head=pooled_classifier(cin, num_classes))


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, then an inverted bottleneck of linear layers on channels last: [N,C,H,W] -> [N,C,H,W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.expand, self.act, self.reduce = (
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
            nn.Linear(4 * channels, channels),
        )
        self.scale = nn.Parameter(torch.full((channels,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.spatial(x).permute(0, 2, 3, 1))
        y = self.scale * self.reduce(self.act(self.expand(y)))
        return x + y.permute(0, 3, 1, 2)


class ImageNorm(nn.LayerNorm):
    """LayerNorm over the channels: [N,C,H,W] -> [N,C,H,W]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def convnext_atto(num_classes: int = 1000) -> nn.Sequential:
    """ConvNeXt-Atto, the smallest ConvNeXt (arXiv:2201.03545, 2301.00808): [N,3,224,224] -> [N,num_classes]."""
    cin = 40
    layers: list[nn.Module] = [nn.Conv2d(3, cin, 4, 4), ImageNorm(cin, eps=1e-6)]
    for index, (channels, repeats) in enumerate(((40, 2), (80, 2), (160, 6), (320, 2))):
        if index:
            layers += [ImageNorm(cin, eps=1e-6), nn.Conv2d(cin, channels, 2, 2)]
        layers += [ConvNeXtBlock(channels) for _ in range(repeats)]
        cin = channels
    head = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(cin, eps=1e-6), nn.Linear(cin, num_classes)
    )
    return named(features=nn.Sequential(*layers), head=head)
