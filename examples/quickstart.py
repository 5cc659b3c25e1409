"""Quantize a small network trained on real data: the demo (``python -m fxquant demo``) as a short script."""

import torch

import fxquant

# The demo's data and training loop; not part of the public API.
from fxquant.compiler.cli.demo import accuracy, digits_network, load_digits, train


def main(epochs: int = 8) -> tuple[float, float]:
    """Returns the test accuracy of the float and the int8 model, in percent."""
    digits = load_digits()
    torch.manual_seed(0)
    model = train(digits_network(), *digits.train, epochs=epochs)

    # Calibration: a few batches of inputs like those to come. They set the ranges of activations.
    compiled = fxquant.compile(model, scheme="static", calibration=digits.calibration[0].split(10))

    print(compiled)  # what became of every layer
    before, after = accuracy(model, *digits.test), accuracy(compiled, *digits.test)
    print(f"test accuracy: fp32 {before:.2f} %, int8 {after:.2f} %")

    # A part can be left in fp32, by module path, module class or op.
    config = fxquant.QuantConfig(overrides={"13": None})
    partly = fxquant.compile(model, calibration=digits.calibration[0].split(10), config=config)
    print([row for row in partly.report.rows if row.precision == "fp32"])
    return before, after


if __name__ == "__main__":
    main()
