"""The model zoo shared by the tests, examples and benchmarks.

Compact definitions of well-known architectures. The ImageNet CNNs reproduce the published layer shapes
(224x224 input, 1000 classes). Every model can be traced by `torch.fx.symbolic_trace`. No trained weights are
needed: `settled` gives a model realistic normalisation parameters and statistics from a seed.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
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


class Attention(nn.Module):
    """Multi-head self-attention from plain operators: [N,T,dim] -> [N,T,dim].

    The query, key and value projections are one Linear if `fused`, else three.
    """

    def __init__(self, dim: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv = nn.ModuleList([nn.Linear(dim, 3 * dim)] if fused else [nn.Linear(dim, dim) for _ in "qkv"])
        self.fused = fused
        self.out = nn.Linear(dim, dim)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), x.size(1), self.heads, x.size(2) // self.heads).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv[0](x).chunk(3, dim=-1) if self.fused else [proj(x) for proj in self.qkv]
        scores = torch.matmul(self.split(query), self.split(key).transpose(-2, -1)) * self.scale
        mixed = torch.matmul(torch.softmax(scores, dim=-1), self.split(value))
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


def encoder_layer(dim: int, heads: int, hidden: int, pre_norm: bool, dropout: float = 0.0) -> nn.Sequential:
    """Encoder layer, pre-LN with fused or post-LN with separate projections: [N,T,dim] -> [N,T,dim]."""

    def residual(*layers: nn.Module) -> Residual:
        norm, drop = nn.LayerNorm(dim), nn.Dropout(dropout)
        if pre_norm:
            return Residual(nn.Sequential(norm, *layers, drop))
        return Residual(nn.Sequential(*layers, drop), after=norm)

    attention = residual(Attention(dim, heads, fused=pre_norm))
    return nn.Sequential(attention, residual(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)))


class BertEncoder(nn.Module):
    """Post-LN encoder with a tanh pooler on the first token: int64 ids [N,length] -> [N,num_classes]."""

    def __init__(
        self, num_classes: int = 10, dim: int = 384, heads: int = 6, hidden: int = 1536,
        depth: int = 6, length: int = 128, vocabulary: int = 8192,
    ) -> None:  # fmt: skip
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, dim)
        self.positions = nn.Parameter(torch.randn(1, length, dim))
        self.norm = nn.Sequential(nn.LayerNorm(dim), nn.Dropout(0.1))
        self.layers = nn.Sequential(*(encoder_layer(dim, heads, hidden, False, 0.1) for _ in range(depth)))
        self.head = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, num_classes))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.layers(self.norm(self.tokens(ids) + self.positions))
        out: Tensor = self.head(x[:, 0])
        return out


class ViT(nn.Module):
    """Pre-LN vision transformer with a class token: [N,3,size,size] -> [N,num_classes]."""

    def __init__(
        self, num_classes: int = 1000, size: int = 224, patch: int = 16,
        dim: int = 192, heads: int = 3, depth: int = 6,
    ) -> None:  # fmt: skip
        super().__init__()
        self.patches = nn.Conv2d(3, dim, patch, patch)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2 + 1, dim))
        self.layers = nn.Sequential(*(encoder_layer(dim, heads, 4 * dim, True) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.size(0), -1, -1), x), dim=1) + self.positions
        out: Tensor = self.head(self.norm(self.layers(x))[:, 0])
        return out


class LSTMClassifier(nn.Module):
    """Two-layer LSTM classified at its last step: [N,T,features] -> [N,num_classes]."""

    def __init__(self, num_classes: int = 10, features: int = 256, hidden: int = 512) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, hidden, num_layers=2, batch_first=True)
        self.classifier = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        steps, _ = self.lstm(x)
        out: Tensor = self.classifier(steps[:, -1])
        return out


def images(batch: int, channels: int = 3, size: int = 224) -> Tensor:
    """Image-like fields [batch,channels,size,size] of about zero mean and unit std, from the global RNG.

    Octaves of interpolated noise fall off as 1/frequency; channels correlate, brightness and contrast vary.
    """
    field = 0.05 * torch.randn(batch, channels, size, size)
    scale = 2
    while scale < size:
        coarse = torch.randn(batch, 1, scale, scale) + 0.5 * torch.randn(batch, channels, scale, scale)
        field += F.interpolate(coarse, (size, size), mode="bicubic", align_corners=False) / scale
        scale *= 2
    std, mean = torch.std_mean(field, (1, 2, 3), keepdim=True)
    contrast = torch.empty(batch, 1, 1, 1).uniform_(0.6, 1.3)
    return (field - mean) / std * contrast + 0.3 * torch.randn(batch, channels, 1, 1)


@dataclass(frozen=True)
class ZooModel:
    """A named model: its constructor, and a source of forward arguments for a batch size (global RNG)."""

    name: str
    build: Callable[[], nn.Module]
    example: Callable[[int], tuple[Tensor, ...]]
    kind: str  # "cnn" | "segmentation" | "transformer" | "recurrent"


def _pictures(size: int) -> Callable[[int], tuple[Tensor, ...]]:
    return lambda batch: (images(batch, 3, size),)


ZOO: dict[str, ZooModel] = {
    model.name: model
    for model in (
        ZooModel("resnet18", resnet18, _pictures(224), "cnn"),
        ZooModel("resnet50", resnet50, _pictures(224), "cnn"),
        ZooModel("mobilenet_v2", mobilenet_v2, _pictures(224), "cnn"),
        ZooModel("mobilenet_v3_large", mobilenet_v3_large, _pictures(224), "cnn"),
        ZooModel("efficientnet_b0", efficientnet_b0, _pictures(224), "cnn"),
        ZooModel("shufflenet_v2", ShuffleNetV2, _pictures(224), "cnn"),
        ZooModel("densenet", DenseNet, _pictures(224), "cnn"),
        ZooModel("unet", UNet, _pictures(128), "segmentation"),
        ZooModel("bert_encoder", BertEncoder, lambda n: (torch.randint(8192, (n, 128)),), "transformer"),
        ZooModel("vit", ViT, _pictures(224), "transformer"),
        ZooModel("lstm_classifier", LSTMClassifier, lambda n: (torch.randn(n, 50, 256),), "recurrent"),
    )
}


def settled(name: str, seed: int = 0, zoo: Mapping[str, ZooModel] = ZOO) -> nn.Module:
    """The model of `zoo` in eval mode with realistic weights determined by `seed`; the global RNG is unchanged.

    BatchNorm and LayerNorm get random affine parameters, LSTMs stronger weights, BatchNorm the statistics of
    four batches of four examples, and the last layer the scale that gives outputs a unit root mean square.
    The model maps `zoo[name].example(n)` to [n,num_classes] (`unet`: [n,num_classes,128,128]).
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = zoo[name].build().eval()
        modules = list(model.modules())
        for module in modules:
            if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
                module.weight.copy_(torch.randn_like(module.weight).mul(0.25).exp().clamp(0.5, 1.5))
                # Biases around zero leave a deep net chaotic: it amplifies any perturbation, as no trained one does.
                module.bias.normal_(0.5 if isinstance(module, nn.BatchNorm2d) else 0, 0.3)
            elif isinstance(module, nn.LSTM):
                for parameter in module.parameters():
                    parameter.mul_(2)
        norms = [module for module in modules if isinstance(module, nn.BatchNorm2d)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.train()
            norm.momentum = None  # a cumulative average
        outputs = torch.cat([model(*zoo[name].example(4)) for _ in range(4)])
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for parameter in modules[-1].parameters():
            parameter.div_(outputs.square().mean().sqrt())
        return model.eval()


def batches(
    name: str, count: int, batch: int = 1, seed: int = 1, zoo: Mapping[str, ZooModel] = ZOO
) -> list[tuple[Tensor, ...]]:
    """`count` tuples of forward arguments [batch,...], drawn from `seed`; the global RNG is unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return [zoo[name].example(batch) for _ in range(count)]
