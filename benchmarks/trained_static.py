"""Accuracy of static quantization with trained weights: `python -m benchmarks.trained_static`.

Each network runs on the same calibration and held-out data in each contender. The SQNR is that of the output tensor
that has the least; the score is the task's own. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import copy
import time

import torch

from fxquant.compiler.numerics.metrics import worst_sqnr

from .peers import CONTENDERS, PEERS, Build, outputs, quiet
from .pretrained import PRETRAINED, Outputs, Yardstick
from .tables import add_markdown, show

NAMES = ("ONNX Runtime int8", "OpenVINO int8 (NNCF)", "fxquant")
COLUMNS = (
    "network",
    "task",
    "fp32",
    *(f"{n}: {what}" for n in NAMES for what in ("dB", "score")),
    "fxquant: compile s",
)


def joined(results: Outputs) -> tuple[torch.Tensor, ...]:
    return tuple(torch.cat(parts) for parts in zip(*results, strict=True))


@torch.inference_mode()
def measured(yardstick: Yardstick, exact: Outputs, build: Build) -> tuple[float, float, float]:
    """SQNR [dB] of the worst output, score, and the seconds that it took to build."""
    began = time.perf_counter()
    with quiet(), torch.inference_mode(False):
        run = build(copy.deepcopy(yardstick.model), yardstick.calibration, torch.get_num_threads())
    seconds = time.perf_counter() - began
    ours = [run(batch) for batch in yardstick.held_out]
    return worst_sqnr(joined(exact), joined(ours)), yardstick.score(exact, ours), seconds


def row(name: str, contenders: dict[str, Build]) -> list[str]:
    yardstick = PRETRAINED[name]()
    with torch.inference_mode():
        exact = [outputs(yardstick.model(*batch)) for batch in yardstick.held_out]
    cells: list[str] = []
    seconds = float("nan")
    for contender in NAMES:
        if contender not in contenders:
            cells += ["-", "-"]
            continue
        seconds = float("nan")
        try:
            decibels, score, seconds = measured(yardstick, exact, contenders[contender])
            cells += [f"{decibels:.1f}", f"{score:.1f}"]
        except Exception as error:
            cells += ["error", f"{type(error).__name__}: {''.join(str(error).splitlines()[:1])[:60]}"]
        print(f"{name}, {contender}: {' '.join(cells[-2:])} ({seconds:.1f} s)", flush=True)
    return [name, yardstick.task, f"{yardstick.score(exact, exact):.1f}", *cells, f"{seconds:.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trained_static", description=__doc__.split("\n")[0])
    parser.add_argument("--models", default=",".join(PRETRAINED), help="default: all")
    parser.add_argument("--contenders", default=",".join(NAMES), help="default: all")
    add_markdown(parser)
    options = parser.parse_args()
    torch.set_num_threads(2)
    contenders = {n: build for n, build in (PEERS | CONTENDERS).items() if n in options.contenders.split(",")}
    show([([row(name, contenders) for name in options.models.split(",")], COLUMNS)], options.markdown)


if __name__ == "__main__":
    main()
