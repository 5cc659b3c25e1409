"""A network for segmentation."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from .layers import ConvBNAct


class UNet(nn.Module):
    """U-Net with transposed convolutions: [N,3,H,W] -> [N,num_classes,H,W], with 16 dividing H and W."""

    def __init__(self, num_classes: int = 4, base: int = 32, depth: int = 4, in_channels: int = 3) -> None:
        super().__init__()
        widths = [base << level for level in range(depth + 1)]
        pairs = list(itertools.pairwise(widths))
        self.stem = self.double_conv(in_channels, base)
        self.down = nn.ModuleList(self.double_conv(upper, lower) for upper, lower in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(lower, upper, 2, 2) for upper, lower in reversed(pairs))
        self.merge = nn.ModuleList(self.double_conv(lower, upper) for upper, lower in reversed(pairs))
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Conv2d(base, num_classes, 1)

    @staticmethod
    def double_conv(cin: int, cout: int) -> nn.Sequential:
        return nn.Sequential(ConvBNAct(cin, cout, 3), ConvBNAct(cout, cout, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(self.pool(x))
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat((skips.pop(), up(x)), dim=1))
        out: Tensor = self.head(x)
        return out
