"""Latency and accuracy of fxquant and its peers on the model zoo, in one run: `python -m benchmarks.latency`.

A model's contenders share weights, calibration batches and thread count. They are timed interleaved: each
round calls every contender a few times, in a new random order, so that the machine's noise hits all alike.

Between contenders there is a pause, then untimed calls. The threads of a runtime spin after a call and would
take the cores from the next contender: on 2 cores, ONNX Runtime's for about 50 ms, libgomp's
(PyTorch) 10 ms, OpenVINO's 1 ms. The pause outlasts them, so that each runtime keeps its default spinning,
its fastest setting on idle cores. The untimed calls then wake the contender's threads and warm its caches.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import math
import os
import platform
import random
import shlex
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from tabulate import tabulate
from torch import nn

from tests.models import FURTHER_CNNS, ZOO, batches, settled

from .peak import int8_peak, products
from .peers import CONTENDERS, PEERS, TORCH_AO, Build, Inputs, Runner, cpu_info, has_vnni, outputs, quiet

MODELS = {**ZOO, **FURTHER_CNNS}
PAUSE = 0.1  # seconds before each contender's turn
WARM_UPS = 2  # untimed calls per turn
CALLS = 3  # timed calls per turn
HELD_OUT = 4  # batches that SQNR is measured on
VERSIONS = ("torch", "onnxruntime", "openvino", "nncf", "fxquant")
RATIOS = ("ratio to best peer", "ratio to torch.ao")
COLUMNS = ("model", "contender", "ms (median)", *RATIOS, "of peak", "SQNR dB", "compile s", "error")


@dataclass
class Result:
    """A contender on a model: runner, or error in one line; SQNR [dB], build time [s], call times [ms].

    `products` are those of the model's layers in one call, `peak` the most int8 products that the machine does in 1 ms.
    """

    contender: str
    run: Runner | None = None
    error: str = ""
    products: float = math.nan
    peak: float = math.nan
    sqnr: float = math.nan
    compile_s: float = math.nan
    times: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.times) if self.times else math.nan

    @property
    def share(self) -> float:
        """Part of the machine's int8 peak."""
        return self.products / self.median / self.peak


def sqnr(model: nn.Module, run: Runner, held_out: Sequence[Inputs]) -> float:
    """Signal-to-quantization-noise ratio [dB] of `run` against the float `model` over all `held_out`."""
    signal = noise = 0.0
    for inputs in held_out:
        reference, output = outputs(model(*inputs))[0].double(), run(inputs)[0].double()
        signal += reference.square().sum().item()
        noise += (reference - output).square().sum().item()
    return 10 * math.log10(signal / noise) if noise else math.inf


def build(
    model: nn.Module, name: str, how: Build, calibration: list[Inputs], held_out: list[Inputs], threads: int
) -> Result:
    """Build the contender `name` on a copy of `model` and check it; its build time has the first call."""
    print(f"building {name}", file=sys.stderr, flush=True)
    result, own = Result(name), copy.deepcopy(model)
    try:
        with quiet():
            start = time.perf_counter()
            run = how(own, calibration, threads)
            with torch.inference_mode():
                run(held_out[0])
                result.compile_s = time.perf_counter() - start
                result.sqnr = sqnr(model, run, held_out)
        result.run = run
    except Exception as error:
        first = next(filter(str.strip, str(error).splitlines()), "").strip()
        result.error = f"{type(error).__name__}: {first}"[:100]
    return result


def foreign_seconds() -> float:
    """CPU seconds that processes other than this have used since boot, over all cores; 0 where unknown."""
    path = Path("/proc/stat")
    if not path.exists():
        return 0.0
    user, nice, system, _, _, *interrupts = map(int, path.read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK") - time.process_time()


def interleave(results: list[Result], inputs: Inputs, rounds: int) -> float:
    """Time all built contenders on `inputs`, round robin in random order; appends to their `times` [ms].

    Returns the share of the cores that other processes took meanwhile.
    """
    order = [(result.run, result.times) for result in results if result.run]
    shuffle = random.Random(0).shuffle
    began, foreign = time.perf_counter(), foreign_seconds()
    with torch.inference_mode():
        for _ in range(rounds):
            shuffle(order)
            for run, times in order:
                time.sleep(PAUSE)
                for _ in range(WARM_UPS):
                    run(inputs)
                for _ in range(CALLS):
                    start = time.perf_counter()
                    run(inputs)
                    times.append(1e3 * (time.perf_counter() - start))
    return (foreign_seconds() - foreign) / (time.perf_counter() - began) / (os.cpu_count() or 1)


def rows(model: str, results: list[Result]) -> list[list[str]]:
    """The table rows of one model; a ratio is the contender's median time over the other's."""
    medians = {result.contender: result.median for result in results}
    best = min((medians[name] for name in PEERS if medians.get(name, math.nan) > 0), default=math.nan)

    def row(result: Result) -> list[str]:
        ratios = result.median / best, result.median / medians.get(TORCH_AO, math.nan)
        numbers = (
            (result.median, 2),
            (ratios[0], 2),
            (ratios[1], 2),
            (result.share, 2),
            (result.sqnr, 1),
            (result.compile_s, 1),
        )
        cells = ["-" if math.isnan(value) else f"{value:.{digits}f}" for value, digits in numbers]
        return [model, result.contender, *cells, result.error]

    return [row(result) for result in results]


def table(body: list[list[str]], style: str = "simple") -> str:
    return tabulate(body, COLUMNS, style, disable_numparse=True, colalign=("left", "left", *["right"] * 6))


def header(options: argparse.Namespace, program: str) -> str:
    """Machine, versions, settings and command, a list item each."""
    installed = {found.metadata["Name"] for found in importlib.metadata.distributions()}
    versions = [f"{name} {importlib.metadata.version(name)}" for name in VERSIONS if name in installed]
    isa = f"{torch.backends.cpu.get_cpu_capability()} {'with' if has_vnni() else 'without'} VNNI"
    lines = (
        f"machine: {cpu_info('model name') or platform.processor()}, {os.cpu_count()} cores, {isa}",
        f"versions: Python {platform.python_version()}, {', '.join(versions)}",
        f"settings: {options.threads} threads, batch {options.batch}, {options.calibration_batches} "
        f"calibration batches, {options.rounds} interleaved rounds of {CALLS} timed calls",
        f"command: python -m {program} {shlex.join(sys.argv[1:])}",
    )
    return "\n".join(f"- {line}" for line in lines)


def chosen(known: Iterable[str], text: str) -> list[str]:
    """The `known` names that contain one of the comma-separated, case-insensitive terms in `text`."""
    terms, names = [term.strip().lower() for term in text.split(",")], list(known)
    for term in terms:
        if not any(term in name.lower() for name in names):
            raise argparse.ArgumentTypeError(f"{term!r} is in none of: {', '.join(names)}")
    return [name for name in names if any(term in name.lower() for term in terms)]


def parse() -> argparse.Namespace:
    """The command line; models and contenders are selected by parts of their names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__.split("\n")[0])
    for flag, known in (("--models", MODELS), ("--peers", CONTENDERS)):
        text = f"parts of names, comma-separated; default all: {', '.join(known)}"
        parser.add_argument(flag, type=partial(chosen, known), default=list(known), help=text)
    for flag, default in (("--batch", 1), ("--threads", 2), ("--rounds", 30), ("--calibration-batches", 8)):
        parser.add_argument(flag, type=int, default=default, help="default %(default)s")
    parser.add_argument("--markdown", type=Path, help="also write the summary to this file")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    head = header(options, "benchmarks.latency")
    print(head, flush=True)
    summary, loads, peak = list[list[str]](), list[str](), int8_peak(options.threads)
    print(f"- int8 peak: {peak / 1e6:.0f} GMAC/s, measured in this run")
    for name in options.models:
        model = settled(name, zoo=MODELS)
        calibration = batches(name, options.calibration_batches, options.batch, seed=1, zoo=MODELS)
        held_out = batches(name, HELD_OUT, options.batch, seed=2, zoo=MODELS)
        results = [
            build(model, peer, CONTENDERS[peer], calibration, held_out, options.threads) for peer in options.peers
        ]
        for result in results:
            result.products, result.peak = products(model, held_out[0]), peak
        loads.append(f"{name} {interleave(results, held_out[0], options.rounds):.0%}")
        summary += rows(name, results)
        print(f"\n{table(rows(name, results))}", flush=True)
    load = f"CPU taken by other processes while timing: {', '.join(loads)}"
    print(f"\nSummary ({load})\n\n{table(summary)}")
    if options.markdown:
        options.markdown.write_text(f"{head}\n- {load}\n\n{table(summary, 'github')}\n")


if __name__ == "__main__":
    main()
