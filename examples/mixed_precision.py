"""The fastest mix of int8 and fp32 within an accuracy budget.

Data and network are those of the demo (handwritten digits, MobileNetV2-style). Weights have four bits and one scale per
layer, and the passes that equalize ranges are off, so that int8 costs accuracy.
"""

import fxquant
from fxquant.compiler.cli.demo import accuracy, digits_network, load_digits, train

CONFIG = fxquant.QuantConfig(
    weight="per_tensor_symmetric", weight_bits=4, equalize=False, smooth=False, correct_bias=False
)


def main(max_drop: float = 0.5, epochs: int = 8) -> fxquant.SearchResult:
    """Returns what the search found; ``max_drop`` is in percent."""
    digits = load_digits()
    model = train(digits_network(), *digits.train, epochs=epochs)
    images = digits.calibration[0]
    # Latency is measured on the first batch: one image, as the model will be used.
    calibration = [images[:1], *images[1:].split(11)]
    result = fxquant.search(model, calibration, lambda module: accuracy(module, *digits.test), max_drop, config=CONFIG)
    print(result, result.best, sep="\n\n")
    return result


if __name__ == "__main__":
    main()
