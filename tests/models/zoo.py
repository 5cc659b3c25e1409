"""The zoo: models by name, with realistic weights and data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .convolutional import (
    DenseNet,
    ShuffleNetV2,
    efficientnet_b0,
    mobilenet_v2,
    mobilenet_v3_large,
    resnet18,
    resnet50,
)
from .further_cnns import convnext_atto, ghostnet, mnasnet_a1, regnet_y_400mf, repvgg_a0
from .segmentation import UNet
from .sequences import BertEncoder, LSTMClassifier, ViT


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

# Further networks for benchmarks, and for tests of what only they have.
FURTHER_CNNS: dict[str, ZooModel] = {
    model.name: model
    for model in (
        ZooModel("mnasnet_a1", mnasnet_a1, _pictures(224), "cnn"),
        ZooModel("regnet_y_400mf", regnet_y_400mf, _pictures(224), "cnn"),
        ZooModel("ghostnet", ghostnet, _pictures(224), "cnn"),
        ZooModel("repvgg_a0", repvgg_a0, _pictures(224), "cnn"),
        ZooModel("convnext_atto", convnext_atto, _pictures(224), "cnn"),
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
        results = [model(*zoo[name].example(4)) for _ in range(4)]
        outputs = torch.cat([r[0] if isinstance(r, tuple) else r for r in results])
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
