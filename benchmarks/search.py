"""What it costs to find out which ops are fragile: `python -m benchmarks.search`.

The time of measuring every op of MobileNetV2 alone in int8, in forward passes of the fake-quantized model.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

import fxquant
from fxquant.backends.x86 import X86Backend
from fxquant.compiler.batches import Batch
from fxquant.compiler.pipeline import calibrated
from fxquant.compiler.sensitivity import frozen_pair, measured_pairs
from fxquant.compiler.work import Options
from tests.models import batches, settled

from .tables import add_markdown, show

COLUMNS = ("model", "ops", "batches", "fake-quantized forward ms", "each op alone ms", "in forwards", "whole table s")


def cost(name: str, count: int, size: int) -> list[str]:
    """A row: medians over the batches."""
    model, calibration = settled(name), batches(name, count, size)
    forwards, alone, units = [], [], 0
    given: list[Batch] = []
    work = calibrated(model, calibration, Options(X86Backend(), fxquant.QuantConfig()), count, given)
    for pair, ops in measured_pairs(*frozen_pair(work), given):
        begin = time.perf_counter()
        pair.int8.again()
        middle = time.perf_counter()
        units = sum(pair.only(op) is not None for op in ops)
        forwards.append((middle - begin) * 1e3)
        alone.append((time.perf_counter() - middle) * 1e3)
    begin = time.perf_counter()
    print(fxquant.sensitivity(model, calibration, batches=count), flush=True)
    whole = time.perf_counter() - begin
    forward, every = statistics.median(forwards), statistics.median(alone)
    times = f"{forward:.0f}", f"{every:.0f}", f"{every / forward:.1f}", f"{whole:.0f}"
    return [name, str(units), f"{count} x {size}", *times]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__.split("\n")[0])
    parser.add_argument("--models", default="mobilenet_v2", help="comma-separated; default %(default)s")
    for flag, default in (("--batches", 8), ("--batch", 8)):
        parser.add_argument(flag, type=int, default=default, help="default %(default)s")
    add_markdown(parser)
    options = parser.parse_args()
    torch.set_num_threads(2)
    body = [cost(name, options.batches, options.batch) for name in options.models.split(",")]
    show([(body, COLUMNS)], options.markdown)


if __name__ == "__main__":
    main()
