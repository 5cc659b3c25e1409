"""``python -m fxquant demo``: train, quantize and compare a small network on real data, in under a minute.

The data are the handwritten digits that come with scikit-learn (1797 images of 8x8 pixels from the UCI repository),
enlarged to 32x32. The network is in the style of MobileNetV2.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor, nn

from ..api import compile
from ..core.errors import FxquantError
from ..core.progress import progress
from ..execution.timing import interleaved_medians
from ..runtime.quantized_module import QuantizedModule

Activation = Callable[[], nn.Module]
IMAGE = 32
TRAIN, CALIBRATION = 1200, 100


class InvertedResidual(nn.Module):
    """Pointwise expansion, depthwise 3x3, linear pointwise projection (Sandler et al. 2018, arXiv:1801.04381)."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: Activation, expansion: int = 4) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.body = nn.Sequential(
            *conv_bn(inputs, hidden, 1),
            activation(),
            *conv_bn(hidden, hidden, 3, stride, groups=hidden),
            activation(),
            *conv_bn(hidden, outputs, 1),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, H, W)`` to ``(N, outputs, H / stride, W / stride)``."""
        return x + self.body(x) if self.residual else self.body(x)


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution without bias, and its normalization."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


def digits_network(activation: Activation = nn.ReLU6) -> nn.Sequential:
    """A classifier of ``(N, 1, 32, 32)`` images into ten digits."""
    return nn.Sequential(
        *conv_bn(1, 24, 3, 2),
        activation(),
        InvertedResidual(24, 32, 2, activation),
        InvertedResidual(32, 32, 1, activation),
        InvertedResidual(32, 64, 2, activation),
        InvertedResidual(64, 64, 1, activation),
        *conv_bn(64, 256, 1),
        activation(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(256, 10),
    )


@dataclass(frozen=True)
class Digits:
    """Images ``(N, 1, 32, 32)`` of about zero mean, and their labels; no image is in two of the splits."""

    train: tuple[Tensor, Tensor]
    calibration: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def load_digits() -> Digits:
    """Scikit-learn's digits, shuffled with a fixed seed.

    Raises:
        FxquantError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise FxquantError(
            "The demo needs scikit-learn for its data: pip install 'fxquant[demo]' (or: pip install scikit-learn)."
        ) from error
    data = datasets.load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    images = F.interpolate(images, size=(IMAGE, IMAGE), mode="bilinear")
    labels = torch.tensor(data.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    splits = order.tensor_split([TRAIN, TRAIN + CALIBRATION])
    return Digits(*((images[part], labels[part]) for part in splits))


def train(model: nn.Sequential, images: Tensor, labels: Tensor, epochs: int = 8) -> nn.Sequential:
    """Train with Adam under a one-cycle schedule. Returns the model in eval mode."""
    torch.manual_seed(0)
    batch = 64
    optimizer = torch.optim.Adam(model.parameters())
    steps = -(-len(labels) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, epochs=epochs, steps_per_epoch=steps)
    model.train()
    for _ in progress(range(epochs), "train", "epoch", epochs):
        for part in torch.randperm(len(labels)).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(model(images[part]), labels[part]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Correct predictions in percent."""
    return float((model(images).argmax(1) == labels).float().mean()) * 100


def compare(model: nn.Module, compiled: QuantizedModule, digits: Digits) -> str:
    """A table of accuracy, size and latency of both models."""
    image = digits.test[0][:1]
    with torch.no_grad():
        times = interleaved_medians([lambda: model(image), lambda: compiled(image)])
    sizes = compiled.report.fp32_bytes, compiled.report.compiled_bytes
    rows = [
        (name, f"{accuracy(m, *digits.test):.2f} %", f"{size / 1024:.0f} KiB", f"{ms:.2f} ms")
        for name, m, size, ms in zip(("fp32", "int8"), (model, compiled), sizes, times, strict=True)
    ]
    return tabulate(rows, ("model", "test accuracy", "parameters", "latency at batch 1"), disable_numparse=True)


def main() -> None:
    """Train, compile, print."""
    digits = load_digits()
    torch.manual_seed(0)
    print("Training a MobileNetV2-style network on scikit-learn's handwritten digits ...", flush=True)
    model = train(digits_network(), *digits.train)
    print("Compiling to int8 ...", flush=True)
    compiled = compile(copy.deepcopy(model), scheme="static", calibration=digits.calibration[0].split(10))
    print(compiled, "\n", compare(model, compiled, digits), sep="\n")
