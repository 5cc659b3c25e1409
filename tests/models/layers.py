"""Layers that the models share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

Activation = Callable[[], nn.Module]

relu: Activation = partial(nn.ReLU, inplace=True)
relu6: Activation = partial(nn.ReLU6, inplace=True)
hardswish: Activation = partial(nn.Hardswish, inplace=True)
silu: Activation = partial(nn.SiLU, inplace=True)


def named(**modules: nn.Module) -> nn.Sequential:
    """An `nn.Sequential` whose children carry the keyword names, in order."""
    return nn.Sequential(OrderedDict(modules))


def scaled(channels: int, width: float, divisor: int = 8) -> int:
    """`channels * width`, rounded to a multiple of `divisor` and never reduced by more than 10%."""
    target = channels * width
    rounded = max(divisor, int(target + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * target else rounded


class ConvBNAct(nn.Sequential):
    """Padded convolution, BatchNorm and an optional activation: [N,cin,H,W] -> [N,cout,H/stride,W/stride]."""

    def __init__(
        self, cin: int, cout: int, kernel: int = 1, stride: int = 1,
        groups: int = 1, act: Activation | None = relu, eps: float = 1e-5,
    ) -> None:  # fmt: skip
        conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(cout, eps=eps), *([act()] if act else []))


class Residual(nn.Module):
    """`after(shortcut(x) + body(x))`; the shortcut and what follows the sum default to the identity."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None, after: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut or nn.Identity()
        self.after = after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.after(self.shortcut(x) + self.body(x))
        return out


class SqueezeExcite(nn.Module):
    """Channel gating: [N,C,H,W] -> [N,C,H,W]."""

    def __init__(self, channels: int, squeezed: int, act: Activation, gate: Activation) -> None:
        super().__init__()
        reduce, expand = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)
        self.scale = nn.Sequential(nn.AdaptiveAvgPool2d(1), reduce, act(), expand, gate())

    def forward(self, x: Tensor) -> Tensor:
        scale: Tensor = self.scale(x)
        return x * scale


def inverted_residual(
    cin: int, expanded: int, cout: int, kernel: int, stride: int,
    conv: Callable[..., nn.Module], excite: nn.Module | None = None,
) -> nn.Module:  # fmt: skip
    """Expand, depthwise convolution, optional squeeze-excite, linear projection; a sum if the shapes agree.

    `conv` is `ConvBNAct` with the block's activation (and BatchNorm epsilon) bound.
    """
    layers = [conv(cin, expanded)] if expanded != cin else []
    layers.append(conv(expanded, expanded, kernel, stride, groups=expanded))
    layers += [excite] if excite else []
    layers.append(conv(expanded, cout, act=None))
    body = nn.Sequential(*layers)
    return Residual(body) if stride == 1 and cin == cout else body


def pooled_classifier(channels: int, num_classes: int, dropout: float = 0.0) -> nn.Sequential:
    """Global average pooling and a linear layer: [N,C,H,W] -> [N,num_classes]."""
    drop = [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *drop, nn.Linear(channels, num_classes))
