"""Recurrent layers of all sizes, int8 dynamic against fp32: `python -m benchmarks.recurrent`.

A layer of as many inputs as channels reads 20 time steps. Contenders take turns in blocks of calls.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import fxquant

from .tables import add_markdown, show

LAYERS = (nn.LSTM, nn.GRU, nn.RNN)
SIZES, BATCHES, STEPS = (16, 32, 64, 128, 256, 512, 1024), (1, 16), 20
WARM_UPS, CALLS, ROUNDS = 3, 10, 4
COLUMNS = ("layer", "channels", "batch", "fp32 ms", "fxquant ms", "ratio")


def medians(runs: list[Callable[[Tensor], object]], x: Tensor) -> list[float]:
    """Milliseconds of each, in turns."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(ROUNDS):
        for run, found in zip(runs, times, strict=True):
            for _ in range(WARM_UPS):
                run(x)
            for _ in range(CALLS):
                start = time.perf_counter()
                run(x)
                found.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(found) for found in times]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recurrent", description=__doc__.split("\n")[0])
    add_markdown(parser)
    options = parser.parse_args()
    torch.set_num_threads(2)
    rows: list[list[str]] = []
    for make in LAYERS:
        for size in SIZES:
            for batch in BATCHES:
                layer, x = make(size, size).eval(), torch.randn(STEPS, batch, size)
                with torch.no_grad():
                    fp32, ours = medians([layer, fxquant.compile(layer, scheme="dynamic")], x)
                rows.append([make.__name__, str(size), str(batch), f"{fp32:.3f}", f"{ours:.3f}", f"{ours / fp32:.2f}"])
    show([(rows, COLUMNS)], options.markdown)
    ratios = [float(row[-1]) for row in rows]
    print(f"worst ratio {max(ratios):.2f}, geometric mean {statistics.geometric_mean(ratios):.2f}")


if __name__ == "__main__":
    main()
