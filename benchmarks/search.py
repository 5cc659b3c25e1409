"""The cost and the result of a search for mixed precision: `python -m benchmarks.search`.

- ``sensitivity``: the time to measure every op of MobileNetV2 alone in int8, in forward passes of the
  fake-quantized model.
- ``planted``: a network in which three layers are fragile (they have two bits): which are found, and with how many
  evaluations, compared with reverting ops one by one.
- ``best``: two small networks: the latency of the mix that is found, against the best of all, or of many random ones.
- ``zoo``: the CNNs of the zoo on digits at several budgets: accuracy, latency, evaluations.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fxquant
from fxquant.backends.x86 import X86Backend
from fxquant.compiler.cli.demo import digits_network, load_digits, train
from fxquant.compiler.diagnosis.sensitivity import exchanges, freeze_all
from fxquant.compiler.execution.sample import Batch
from fxquant.compiler.execution.timing import interleaved_medians
from fxquant.compiler.search.evaluation import reaches
from fxquant.compiler.search.space import Mix, Space, search_space
from fxquant.compiler.workflows.options import Options
from fxquant.compiler.workflows.static import prepare_and_calibrate
from tests.models import ZOO, batches, settled

from .accuracy import OFF
from .search_tasks import (
    calibration,
    deep_network,
    evaluation,
    greedy,
    on_digits,
    pictures,
    random_mixes,
    small_network,
)
from .tables import Table, add_markdown, show

# One scale per weight tensor and no pass that evens them out: more is lost, so that there is something to find.
PLAIN = fxquant.QuantConfig(weight="per_tensor_symmetric", deterministic=False, **OFF)
FOUR_BITS = replace(PLAIN, weight_bits=4)

# Layers that two bits make fragile: with any of them in int8 the network misses its budget.
FRAGILE = ("4.body.6", "6.body.0", "8.body.0")
TWO_BITS = fxquant.QuantConfig(
    weight="per_tensor_symmetric", weight_bits=2, equalize=False, smooth=False, correct_bias=False
)


def sensitivity(options: argparse.Namespace) -> Table:
    """Medians over the batches."""
    name, count, size = options.model, options.batches, options.batch
    model, data = settled(name), batches(name, count, size)
    forwards, alone, units = [], [], 0
    given: list[Batch] = []
    calibrated = prepare_and_calibrate(model, data, Options(X86Backend(), fxquant.QuantConfig()), count, given)
    for exchange, ops in exchanges(freeze_all(calibrated), given):
        begin = time.perf_counter()
        exchange.int8.again()
        middle = time.perf_counter()
        units = sum(exchange.only(op) is not None for op in ops)
        forwards.append((middle - begin) * 1e3)
        alone.append((time.perf_counter() - middle) * 1e3)
    begin = time.perf_counter()
    print(fxquant.sensitivity(model, data, batches=count), flush=True)
    whole = time.perf_counter() - begin
    forward, every = statistics.median(forwards), statistics.median(alone)
    times = f"{forward:.0f} ms", f"{every:.0f} ms", f"{every / forward:.1f}", f"{whole:.0f}"
    columns = (
        "model",
        "ops",
        "batches",
        "fake-quantized forward",
        "each op alone",
        "in forwards",
        "whole table s",
    )
    return [[name, str(units), f"{count} x {size}", *times]], columns


def planted(options: argparse.Namespace) -> Table:
    """Evaluations are those of mixes, the search's also twice the float model."""
    digits, max_drop = load_digits(), 0.005
    torch.manual_seed(0)
    model = train(deep_network(), *digits.train)
    config = fxquant.QuantConfig(deterministic=False, overrides=dict.fromkeys(FRAGILE, TWO_BITS))
    # Latency in batches of twenty: at one image these layers are too small to be any faster in int8.
    data, evaluate = digits.calibration[0].split(20), evaluation(digits)
    calls = 0

    def counted(module: nn.Module) -> float:
        nonlocal calls
        calls += 1
        return evaluate(module)

    result = fxquant.search(model, data, counted, max_drop, config=config)
    print(result, result.best, sep="\n", flush=True)
    space = search_space(prepare_and_calibrate(model, data, Options(X86Backend(), config), 32), None)
    floor, path = result.floor, {row.key: row.node for row in result.sensitivity.rows}

    def named(mix: Mix) -> str:
        return ", ".join(path[op] for op in space.weighted if op not in mix and op in space.front[0].int8)

    def of_mix(mix: Mix) -> float:
        return evaluate(space.compiled(mix))

    ours = frozenset(space.costs.fp32) - result.chosen.fp32
    body = [["search", named(ours), str(calls), f"{result.chosen.value:.4f}"]]
    for title, alone in (("one by one, ranked as NNCF", False), ("one by one, ranked as AIMET", True)):
        mix, count = greedy(space, of_mix, floor, alone)
        body.append([title, named(mix), str(count), f"{of_mix(mix):.4f}"])
    body.append(["planted", ", ".join(FRAGILE), "", f"at least {floor:.4f}"])
    return body, ("method", "layers in fp32 for accuracy", "evaluations", "accuracy")


def best(options: argparse.Namespace) -> Table:
    """The five within the budget that were measured to be fastest are timed again, and the first of them meets the
    search's choice in one more run: what a lucky measurement chose is not what it is compared by.
    """
    body = []
    digits = load_digits()
    for title, build, count in (("6 layers", small_network, 64), ("16 layers", digits_network, options.mixes)):
        torch.manual_seed(0)
        model = train(build(), *digits.train)
        data, evaluate = calibration(digits), evaluation(digits)
        space = search_space(prepare_and_calibrate(model, data, Options(X86Backend(), FOUR_BITS), 32), None)
        fp32 = evaluate(model)
        known = [(mix, space.compiled(mix)) for mix in dict.fromkeys(random_mixes(space, count))]
        values = [evaluate(module) for _, module in known]
        for max_drop in (0.0, 0.01, 0.03):
            with _quiet():
                result = fxquant.search(model, data, evaluate, max_drop, config=FOUR_BITS)
            ours = frozenset(space.costs.fp32) - result.chosen.fp32
            within = [known[i] for i, value in enumerate(values) if reaches(value, result.floor)]
            first = _times([module for _, module in within], data[0], rounds=15)
            fastest = [within[i][0] for i in sorted(range(len(within)), key=first.__getitem__)[:5]]
            again = _compiled_times(space, fastest, data[0])
            first_of_all = fastest[again.index(min(again))]
            found, other = _compiled_times(space, [ours, first_of_all], data[0])
            row = [title, f"{max_drop:g}", f"{fp32:.4f}", f"{result.chosen.value:.4f}", str(len(result.trials))]
            row += [
                f"{len(within)} of {len(known)}",
                f"{found:.3f}",
                f"{other:.3f}",
                f"{found / other:.3f}",
            ]
            body.append(row)
            print(*body[-1], flush=True)
    columns = ("network", "max_drop", "fp32", "found", "evaluated", "within the budget", "found ms", "best ms", "ratio")
    return body, columns


def zoo(options: argparse.Namespace) -> Table:
    """Latency at one image of 64x64, beside the float model in one run."""
    body = []
    digits = pictures(load_digits())
    data, evaluate = calibration(digits), evaluation(digits)
    names = options.models.split(",") if options.models else [m.name for m in ZOO.values() if m.kind == "cnn"]
    for name in names:
        model = on_digits(name, digits)
        int8 = evaluate(fxquant.compile(model, calibration=data, config=PLAIN))
        with tempfile.TemporaryDirectory() as folder:
            for max_drop in (0.0, 0.005, 0.02):
                begin = time.perf_counter()
                with _quiet():
                    kept = Path(folder) / "trials"
                    result = fxquant.search(model, data, evaluate, max_drop, config=PLAIN, resume=kept)
                seconds = time.perf_counter() - begin
                ours, theirs = _times([result.best, model], data[0], rounds=60)
                rows = result.best.report.rows
                ops = f"{sum(row.precision == 'fp32' for row in rows)} of {len(rows)}"
                row = [name, f"{max_drop:g}", f"{result.fp32:.4f}", f"{int8:.4f}", f"{result.chosen.value:.4f}"]
                within = reaches(evaluate(result.best), result.floor)
                row += ["yes" if within else "NO", ops, str(len(result.trials))]
                body.append([*row, f"{seconds:.0f}", f"{ours:.2f}", f"{theirs:.2f}", f"{ours / theirs:.2f}"])
                print(*body[-1], flush=True)
    columns: tuple[str, ...] = ("model", "max_drop", "fp32", "int8", "found", "within", "ops in fp32", "evaluated", "s")
    columns += ("found ms", "fp32 ms", "ratio")
    return body, columns


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fxquant.BudgetWarning)
        yield


def _compiled_times(space: Space, mixes: list[Mix], x: torch.Tensor) -> list[float]:
    """The median of four compilations of each: they differ by a few percent, as weights are elsewhere in memory."""
    times = _times([space.compiled(mix) for mix in mixes * 4], x, rounds=200)
    return [statistics.median(times[i :: len(mixes)]) for i in range(len(mixes))]


@torch.no_grad()
def _times(modules: list[Any], x: torch.Tensor, rounds: int) -> list[float]:
    return interleaved_medians([lambda m=m: m(x) for m in modules], rounds, seconds=60.0)  # type: ignore[misc]


PARTS: dict[str, Callable[[argparse.Namespace], Table]] = {
    "sensitivity": sensitivity,
    "planted": planted,
    "best": best,
    "zoo": zoo,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)}; default all")
    parser.add_argument("--model", default="mobilenet_v2", help="of sensitivity; default %(default)s")
    parser.add_argument("--models", help="of zoo, comma-separated; default all CNNs")
    for flag, default, what in (
        ("--batches", 8, "of sensitivity"),
        ("--batch", 8, "images in each of these"),
        ("--mixes", 300, "random ones in best"),
    ):
        parser.add_argument(flag, type=int, default=default, help=f"{what}; default %(default)s")
    add_markdown(parser)
    options = parser.parse_args()
    torch.set_num_threads(2)
    show([PARTS[part](options) for part in options.parts], options.markdown)


if __name__ == "__main__":
    main()
