"""Dynamic quantization by fxquant and its peers, in one run: `python -m benchmarks.dynamic`.

Latency is measured as in `benchmarks.latency`; SQNR on held-out batches of random inputs.
"""

from __future__ import annotations

import argparse
import math
from functools import partial
from pathlib import Path

import torch
from tabulate import tabulate

import fxquant
from tests.models import ZOO, batches, settled
from tests.sequence_models import FURTHER_SEQUENCES, SEQUENCES

from .latency import HELD_OUT, Result, build, chosen, header, interleave
from .peers import DYNAMIC, TORCH_AO_DYNAMIC

MODELS = {name: ZOO[name] for name in ("bert_encoder", "lstm_classifier")} | SEQUENCES | FURTHER_SEQUENCES
OURS = {"fxquant dynamic": torch.int8, "fxquant fp16": torch.float16}
COLUMNS = ("model", "contender", "ms (median)", "ratio to torch.ao", "SQNR dB", "weights", "compile s", "error")


def weights(name: str, contender: str) -> str:
    """The share of the bytes of the parameters that is left, for fxquant."""
    if contender not in OURS:
        return "-"
    report = fxquant.compile(settled(name, zoo=MODELS), scheme="dynamic", dtype=OURS[contender]).report
    return f"{report.compiled_bytes / report.fp32_bytes:.1%}"


def rows(name: str, results: list[Result]) -> list[list[str]]:
    peer = next((r.median for r in results if r.contender == TORCH_AO_DYNAMIC), math.nan)

    def row(result: Result) -> list[str]:
        numbers = (result.median, 2), (result.median / peer, 2), (result.sqnr, 1), (result.compile_s, 1)
        ms, ratio, sqnr, seconds = ("-" if math.isnan(v) else f"{v:.{digits}f}" for v, digits in numbers)
        return [name, result.contender, ms, ratio, sqnr, weights(name, result.contender), seconds, result.error]

    return [row(result) for result in results]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dynamic", description=__doc__.split("\n")[0])
    for flag, known in (("--models", MODELS), ("--peers", DYNAMIC)):
        text = f"parts of names, comma-separated; default all: {', '.join(known)}"
        parser.add_argument(flag, type=partial(chosen, known), default=list(known), help=text)
    for flag, default in (("--batch", 1), ("--threads", 2), ("--rounds", 20)):
        parser.add_argument(flag, type=int, default=default, help="default %(default)s")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    return parser.parse_args()


def main() -> None:
    options = parse()
    options.calibration_batches = 1  # an example, for export
    torch.set_num_threads(options.threads)
    head = header(options, "benchmarks.dynamic")
    print(head, flush=True)
    body = list[list[str]]()
    for name in options.models:
        model = settled(name, zoo=MODELS)
        example = batches(name, 1, options.batch, seed=1, zoo=MODELS)
        held_out = batches(name, HELD_OUT, options.batch, seed=2, zoo=MODELS)
        results = [build(model, peer, DYNAMIC[peer], example, held_out, options.threads) for peer in options.peers]
        load = interleave(results, held_out[0], options.rounds)
        found = rows(name, results)
        body += found
        print(f"\n{tabulate(found, COLUMNS, disable_numparse=True)}\nother load {load:.0%}", flush=True)
    if options.markdown:
        options.markdown.write_text(f"{head}\n\n{tabulate(body, COLUMNS, 'github', disable_numparse=True)}\n")


if __name__ == "__main__":
    main()
