"""Quantization-aware training: recover the accuracy that a network loses with 3-bit weights.

Data and network are those of the demo (handwritten digits, MobileNetV2-style), all weights of a layer share one scale.
"""

import copy

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import nn
from tqdm import trange

import fxquant
from fxquant.compiler.cli.demo import Digits, accuracy, digits_network, load_digits, train


def fine_tune(model: nn.Module, digits: Digits, epochs: int) -> None:
    """An ordinary training loop. Two lines in it are about quantization."""
    images, labels = digits.train
    steps = epochs * -(-len(labels) // 64)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    if isinstance(model, fxquant.QATModule):
        model.freeze_observers(after=0.5, steps=steps)  # from the middle on the scales stay as they are,
        model.freeze_batchnorm(after=0.7, steps=steps)  # and later the statistics that fold into the weights
    torch.manual_seed(0)
    model.train()
    for _ in trange(epochs, desc="fine-tune", unit="epoch", disable=None, leave=False):
        for part in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images[part]), labels[part])
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def main(epochs: int = 8, fine_tuning: int = 6) -> dict[int, dict[str, float]]:
    """Returns, by the bits of the weights, test accuracies and how often int8 and simulation agree, in percent."""
    digits = load_digits()
    torch.manual_seed(0)
    model = train(digits_network(), *digits.train, epochs=epochs)
    longer = copy.deepcopy(model)
    fine_tune(longer, digits, fine_tuning)  # as long in fp32: what part of a gain is the training itself
    calibration = digits.calibration[0].split(10)
    found: dict[int, dict[str, float]] = {}
    for bits in (8, 4, 3):
        config = fxquant.QuantConfig(weight="per_tensor_symmetric", weight_bits=bits, scales="learned")
        static = fxquant.compile(model, scheme="static", calibration=calibration, config=config)
        prepared = fxquant.prepare(model, scheme="qat", calibration=calibration, config=config)
        rounded = accuracy(prepared.eval(), *digits.test)
        fine_tune(prepared, digits, fine_tuning)
        compiled = fxquant.convert(prepared)
        print(compiled.report.remark)
        with torch.no_grad():
            same = compiled(digits.test[0]).argmax(1) == prepared(digits.test[0]).argmax(1)
        found[bits] = {
            "fp32": accuracy(model, *digits.test),
            "fp32, trained on": accuracy(longer, *digits.test),
            "rounding alone": rounded,
            "static": accuracy(static, *digits.test),
            "qat": accuracy(compiled, *digits.test),
            "int8 = simulated": float(same.float().mean()) * 100,
        }
    rows = [(f"W{bits}A8", *(f"{value:.2f}" for value in row.values())) for bits, row in found.items()]
    print(tabulate(rows, ("weights", *found[8]), disable_numparse=True))
    return found


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
