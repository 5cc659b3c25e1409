"""The effect of each accuracy pass, on networks trained on real data: `python -m benchmarks.accuracy`.

The data are scikit-learn's handwritten digits; the networks are those of the demo, MobileNetV2-style. One has ReLU, and
its channels are rescaled over decades without a change of its function (as Nagel et al. 2019, arXiv:1906.04721, found
in MobileNetV2). The other has hard-swish. Every row is a compilation of its own; accuracy is of the lowered module.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import fxquant
from fxquant import QuantConfig
from fxquant.compiler.cli.demo import Digits, InvertedResidual, accuracy, digits_network, load_digits, train
from fxquant.compiler.numerics.metrics import sqnr
from tests.models import ZOO, batches, settled

from .peers import quiet
from .tables import add_markdown, show

OFF: dict[str, Any] = dict.fromkeys(("equalize", "smooth", "absorb_bias", "correct_bias", "mixed_precision"), False)
CALIBRATION = 10  # images per batch
HELD_OUT = 24  # inputs that the SQNR of the zoo is measured on: of fewer, a few tenths of a dB are chance
Build = Callable[[nn.Module, Digits], nn.Module]
ZOO_COLUMNS = ("model", "passes off", "smooth alone", "correct_bias alone", "default")
COLUMNS = ("network", "weights", "what", "test accuracy %", "below fp32", "SQNR dB")


def badly_scaled(model: nn.Module, decades: float, seed: int = 0) -> nn.Module:
    """A copy whose inner channels are rescaled, log-uniformly over `decades`, without a change of its function.

    Where `conv, batch norm, relu, conv` follow each other, the norm's output is multiplied and the second
    convolution's input divided by the same positive factor per channel.
    """
    model = copy.deepcopy(model)
    seeded = torch.Generator().manual_seed(seed)
    for block in model.modules():
        if isinstance(block, InvertedResidual):
            layers = list(block.body)
            for norm, reader in zip(layers[1:], layers[3:], strict=False):
                if isinstance(norm, nn.BatchNorm2d) and isinstance(reader, nn.Conv2d):
                    factor = 10 ** (decades * (torch.rand(norm.num_features, generator=seeded) - 0.5))
                    _rescale(norm, reader, factor)
    return model


@torch.no_grad()
def _rescale(norm: nn.BatchNorm2d, reader: nn.Conv2d, factor: Tensor) -> None:
    norm.weight.mul_(factor)
    norm.bias.mul_(factor)
    depthwise = reader.groups > 1
    reader.weight /= factor.reshape((-1, 1, 1, 1) if depthwise else (1, -1, 1, 1))


def torch_ao(per_channel: bool) -> Build:
    """FX graph mode quantization of torch.ao with its x86 observers."""

    def build(model: nn.Module, digits: Digits) -> nn.Module:
        from torch.ao.quantization import QConfigMapping, get_default_qconfig
        from torch.ao.quantization.observer import default_weight_observer
        from torch.ao.quantization.qconfig import QConfig
        from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

        qconfig = get_default_qconfig("x86")
        if not per_channel:
            qconfig = QConfig(activation=qconfig.activation, weight=default_weight_observer)
        with quiet():
            prepared = prepare_fx(copy.deepcopy(model), QConfigMapping().set_global(qconfig), (digits.test[0][:1],))
            for images in digits.calibration[0].split(CALIBRATION):
                prepared(images)
            return convert_fx(prepared)

    return build


def ours(per_channel: bool, **options: Any) -> Build:
    """fxquant, with everything off but `options`."""
    config = QuantConfig(
        weight="per_channel_symmetric" if per_channel else "per_tensor_symmetric", **{**OFF, **options}
    )

    def build(model: nn.Module, digits: Digits) -> nn.Module:
        return fxquant.compile(model, calibration=digits.calibration[0].split(CALIBRATION), config=config)

    return build


CLE: dict[str, Any] = {"equalize": True}
ABSORBED = {**CLE, "absorb_bias": True}
CORRECTED = {**ABSORBED, "correct_bias": True}
RUINED: dict[str, Any] = {"mixed_precision": True}
AUTO = {**dict.fromkeys(OFF, "auto"), **RUINED}
STAIRCASE = {
    ("per tensor", "torch.ao FX"): torch_ao(False),
    ("per tensor", "plain"): ours(False),
    ("per tensor", "plain, ruined layers in fp32"): ours(False, **RUINED),
    ("per tensor", "+ equalization (CLE)"): ours(False, **CLE),
    ("per tensor", "+ bias absorption"): ours(False, **ABSORBED),
    ("per tensor", "+ bias correction"): ours(False, **CORRECTED),
    ("per tensor", "+ learned rounding"): ours(False, **CORRECTED, rounding="learned"),
    ("per tensor", "default (auto)"): ours(False, **AUTO),
    ("per channel", "torch.ao FX"): torch_ao(True),
    ("per channel", "plain"): ours(True),
    ("per channel", "plain, ruined layers in fp32"): ours(True, **RUINED),
    ("per channel", "default (auto)"): ours(True, **AUTO),
    ("per channel", "+ learned rounding"): ours(True, **AUTO, rounding="learned"),
}
HARD_SWISH = {
    ("per tensor", "torch.ao FX"): torch_ao(False),
    **{
        (f"per tensor, {bits} bits", what): ours(False, weight_bits=bits, **options)
        for bits in (8, 4, 3)
        for what, options in (
            ("plain", {}),
            ("+ bias correction", {"correct_bias": True}),
            ("+ learned rounding", {"correct_bias": True, "rounding": "learned"}),
        )
    },
    ("per channel", "plain"): ours(True),
    ("per channel", "default (auto)"): ours(True, **AUTO),
}


@torch.no_grad()
def rows(name: str, model: nn.Module, digits: Digits, builds: Mapping[tuple[str, str], Build]) -> list[list[str]]:
    """A row for `model` in fp32, and one for each of `builds`."""
    images, labels = digits.test
    exact, right = model(images), accuracy(model, images, labels)
    body = [[name, "fp32", "", f"{right:.2f}", "", ""]]
    for (weights, what), build in builds.items():
        run = build(model, digits)
        got = accuracy(run, images, labels)
        cells = [f"{got:.2f}", f"{right - got:.2f}", f"{sqnr([exact], [run(images)]):.1f}"]
        body.append([name, weights, what, *cells])
        print(*body[-1], sep=" | ", flush=True)
    return body


def digits_rows(decades: float) -> list[list[str]]:
    """All rows of both networks."""
    digits = load_digits()
    body = []
    for name, activation, builds in (("relu", nn.ReLU, STAIRCASE), ("hard-swish", nn.Hardswish, HARD_SWISH)):
        torch.manual_seed(0)
        model: nn.Module = train(digits_network(activation), *digits.train)
        if activation is nn.ReLU:
            name, model = f"relu, rescaled over {decades:g} decades", badly_scaled(model, decades)
        body += rows(name, model, digits, builds)
    return body


@torch.no_grad()
def zoo_rows() -> list[list[str]]:
    """SQNR of every zoo model with the passes off, with one of them at its default, and with all."""
    body = []
    for name in ZOO:
        model, calibration = settled(name), batches(name, 8, seed=1)
        held_out = batches(name, HELD_OUT, seed=2)
        exact = [model(*inputs) for inputs in held_out]
        cells = [name]
        for options in (OFF, {**OFF, "smooth": "auto"}, {**OFF, "correct_bias": "auto"}, {}):
            q = fxquant.compile(model, calibration=calibration, config=QuantConfig(**options))
            cells.append(f"{sqnr(exact, [q(*inputs) for inputs in held_out]):.1f}")
        body.append(cells)
        print(*cells, sep=" | ", flush=True)
    return body


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__.split("\n")[0])
    parser.add_argument("--decades", type=float, default=3.0, help="default %(default)s")
    parser.add_argument("--zoo", action="store_true", help="SQNR of the zoo with the passes off and on, instead")
    add_markdown(parser)
    options = parser.parse_args()
    torch.set_num_threads(2)
    body, columns = (zoo_rows(), ZOO_COLUMNS) if options.zoo else (digits_rows(options.decades), COLUMNS)
    show([(body, columns)], options.markdown)


if __name__ == "__main__":
    main()
