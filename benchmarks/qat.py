"""Quantization-aware training by fxquant and torch.ao, in one run: `python -m benchmarks.qat`.

Accuracy: the demo's network on handwritten digits, fine-tuned in the same way by both, with all weights of a layer on
one scale. Time: seconds per epoch of the same network, and milliseconds per training step of models of the zoo; the
contenders take turns, median.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant import QATModule, QuantConfig
from fxquant.compiler.cli.demo import Digits, accuracy, digits_network, load_digits, train
from fxquant.compiler.execution.timing import interleaved_medians
from tests.models import batches, settled

from .peers import quiet
from .tables import add_markdown, show

BATCH = 64
FREEZE_OBSERVERS, FREEZE_BATCHNORM = 0.5, 0.7  # of the epochs
ZOO = ("resnet18", "mobilenet_v3_large")
ACCURACY = ("weights", "contender", "before training", "simulated", "int8", "int8 = simulated %", "below fp32")
TIME = ("what", "contender", "median", "ratio to fp32", "ratio to torch.ao")


@dataclass(frozen=True)
class Contender:
    """How a float model is prepared for training, frozen on the way, and converted."""

    prepare: Callable[[nn.Module, list[Any]], nn.Module]
    freeze_observers: Callable[[Any], object]
    freeze_batchnorm: Callable[[Any], object]
    convert: Callable[[Any], nn.Module]


def ours(**options: Any) -> Contender:
    config = QuantConfig(**options)

    def prepare(model: nn.Module, calibration: list[Any]) -> nn.Module:
        return fxquant.prepare(model, scheme="qat", calibration=calibration, config=config)

    return Contender(prepare, QATModule.freeze_observers, QATModule.freeze_batchnorm, fxquant.convert)


def torch_ao(bits: int = 8, per_channel: bool = False) -> Contender:
    """FX graph mode QAT with the settings for x86; weights on `bits`, by the fused fake-quant with a moving range."""
    from torch.ao.nn.intrinsic.qat import freeze_bn_stats
    from torch.ao.quantization import QConfigMapping, disable_observer, get_default_qat_qconfig
    from torch.ao.quantization.fake_quantize import FusedMovingAvgObsFakeQuantize
    from torch.ao.quantization.observer import MovingAverageMinMaxObserver
    from torch.ao.quantization.qconfig import QConfig
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_qat_fx

    qconfig = get_default_qat_qconfig("x86")
    if not per_channel:
        weight = FusedMovingAvgObsFakeQuantize.with_args(
            observer=MovingAverageMinMaxObserver, dtype=torch.qint8, qscheme=torch.per_tensor_symmetric,
            quant_min=-(2 ** (bits - 1)), quant_max=2 ** (bits - 1) - 1,
        )  # fmt: skip
        qconfig = QConfig(activation=qconfig.activation, weight=weight)

    def prepare(model: nn.Module, calibration: list[Any]) -> nn.Module:
        example = calibration[0] if isinstance(calibration[0], tuple) else (calibration[0],)
        with quiet():
            return prepare_qat_fx(copy.deepcopy(model).train(), QConfigMapping().set_global(qconfig), example)

    def convert(model: nn.Module) -> nn.Module:
        with quiet():
            return convert_fx(copy.deepcopy(model).eval())  # type: ignore[arg-type]

    return Contender(
        prepare, lambda model: model.apply(disable_observer), lambda model: model.apply(freeze_bn_stats), convert
    )


FLOAT = Contender(
    lambda model, calibration: copy.deepcopy(model), lambda model: None, lambda model: None, lambda model: model
)


def epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: tuple[Tensor, Tensor], schedule: Any = None
) -> None:
    images, labels = data
    model.train()
    for part in torch.randperm(len(labels)).split(BATCH):
        optimizer.zero_grad()
        F.cross_entropy(model(images[part]), labels[part]).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()


def fine_tuned(model: nn.Module, contender: Contender, digits: Digits, epochs: int) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    steps = epochs * -(-len(digits.train[1]) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    torch.manual_seed(0)
    for number in range(epochs):
        if number == round(epochs * FREEZE_OBSERVERS):
            contender.freeze_observers(model)
        if number == round(epochs * FREEZE_BATCHNORM):
            contender.freeze_batchnorm(model)
        epoch(model, optimizer, digits.train, schedule)
    return model.eval()


def accuracy_rows(model: nn.Module, digits: Digits, epochs: int) -> list[list[str]]:
    calibration = list(digits.calibration[0].split(10))
    longer = accuracy(fine_tuned(copy.deepcopy(model), FLOAT, digits, epochs), *digits.test)
    body = [["fp32", "as trained", "", f"{accuracy(model, *digits.test):.2f}", "", "", ""]]
    body += [["fp32", "trained on", "", f"{longer:.2f}", "", "", ""]]
    for bits in (8, 4, 3):
        config: dict[str, Any] = {"weight": "per_tensor_symmetric", "weight_bits": bits}
        contenders = {
            "torch.ao": torch_ao(bits),
            "fxquant": ours(**config),
            "fxquant, learned scales": ours(**config, scales="learned"),
        }
        for name, contender in contenders.items():
            prepared = contender.prepare(model, calibration)
            # torch.ao has seen no data before its first step.
            before = f"{accuracy(prepared.eval(), *digits.test):.2f}" if isinstance(prepared, QATModule) else ""
            prepared = fine_tuned(prepared, contender, digits, epochs)
            done = contender.convert(prepared)
            with torch.no_grad():
                same = (done(digits.test[0]).argmax(1) == prepared(digits.test[0]).argmax(1)).float().mean()
            got = accuracy(done, *digits.test)
            simulated = accuracy(prepared, *digits.test)
            cells = [before, f"{simulated:.2f}", f"{got:.2f}", f"{float(same) * 100:.2f}", f"{longer - got:.2f}"]
            body.append([f"W{bits}A8 per tensor", name, *cells])
            print(*body[-1], sep=" | ", flush=True)
    return body


def timed() -> dict[str, Contender]:
    """Those whose time is taken, with a scale for each output channel: the defaults."""
    return {
        "fp32": FLOAT,
        "torch.ao": torch_ao(per_channel=True),
        "fxquant": ours(),
        "fxquant, learned scales": ours(scales="learned"),
        "fxquant, 4 bits": ours(weight_bits=4),
    }


def time_rows(what: str, unit: str, runs: dict[str, Callable[[], None]], rounds: int) -> list[list[str]]:
    scale = 1e3 if unit == "s" else 1.0
    times = dict(zip(runs, interleaved_medians(list(runs.values()), rounds, 600.0, warm_up=1), strict=True))
    body = [
        [what, n, f"{t / scale:.4g} {unit}", f"{t / times['fp32']:.2f}", f"{t / times['torch.ao']:.2f}"]
        for n, t in times.items()
    ]
    print(*(" | ".join(row) for row in body), sep="\n", flush=True)
    return body


def epoch_rows(model: nn.Module, digits: Digits, rounds: int) -> list[list[str]]:
    calibration = list(digits.calibration[0].split(10))

    def run_of(contender: Contender) -> Callable[[], None]:
        prepared = contender.prepare(model, calibration)
        optimizer = torch.optim.Adam(prepared.parameters(), 1e-4)
        return lambda: epoch(prepared, optimizer, digits.train)

    return time_rows("epoch of the digits", "s", {n: run_of(c) for n, c in timed().items()}, rounds)


def step_rows(name: str, rounds: int) -> list[list[str]]:
    calibration = batches(name, 2, 8)

    def run_of(contender: Contender) -> Callable[[], None]:
        prepared = contender.prepare(settled(name), calibration).train()
        optimizer = torch.optim.SGD(prepared.parameters(), 1e-6)

        def run() -> None:
            optimizer.zero_grad()
            prepared(*calibration[0]).square().mean().backward()
            optimizer.step()

        return run

    return time_rows(f"step of {name}, batch 8", "ms", {n: run_of(c) for n, c in timed().items()}, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.qat", description=__doc__.split("\n")[0])
    for flag, default in (("--epochs", 6), ("--rounds", 7)):
        parser.add_argument(flag, type=int, default=default, help="default %(default)s")
    add_markdown(parser)
    options = parser.parse_args()
    torch.set_num_threads(2)
    digits = load_digits()
    torch.manual_seed(0)
    model = train(digits_network(), *digits.train)
    times = epoch_rows(model, digits, options.rounds)
    for name in ZOO:
        times += step_rows(name, options.rounds)
    tables = [(times, TIME), (accuracy_rows(model, digits, options.epochs), ACCURACY)]
    show(tables, options.markdown)


if __name__ == "__main__":
    main()
