"""What of other people's architectures compiles, and how well: `python -m benchmarks.coverage`.

Each model is compiled in both schemes that need no training. Written down are the share of the weights of its linear
and convolutional layers that is int8, the SQNR of its outputs on the calibration data, on a second call and at another
batch size, and its latency relative to fp32 (calls in turns, medians). `--resume FILE` keeps a row of each model in a
file, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from tqdm import tqdm

import fxquant
from fxquant.compiler.execution.timing import interleaved_times
from fxquant.compiler.numerics.metrics import sqnr

from .coverage_branching import BRANCHING, TORCH
from .coverage_models import HUGGING_FACE, Call, settled
from .tables import add_markdown, show

COLUMNS = (
    "model",
    "scheme",
    "weights int8",
    "SQNR dB",
    "second call",
    "one item",
    "latency / fp32",
    "compile s",
    "note",
)
ENOUGH = 20  # dB
MODELS = HUGGING_FACE | BRANCHING | TORCH


@dataclass(frozen=True)
class Result:
    """A model in a scheme. Shares are of 1, SQNR in dB, `note` is an error or the reason of the first fp32 layer."""

    model: str
    scheme: str
    share: float = 0.0
    quality: float = 0.0
    again: bool = False
    one: float = 0.0
    ratio: float = 0.0
    seconds: float = 0.0
    note: str = ""

    @property
    def good(self) -> bool:
        """Whether it compiles, with nothing wrong in silence."""
        return self.again and min(self.quality, self.one) >= ENOUGH

    def row(self) -> list[str]:
        """The cells of the table."""
        if not self.seconds:
            return [self.model, self.scheme, *[""] * 6, self.note]
        return [
            self.model, self.scheme, f"{self.share:.0%}", f"{self.quality:.1f}", "same" if self.again else "DIFFERENT",
            f"{self.one:.1f}", f"{self.ratio:.2f}", f"{self.seconds:.1f}", self.note,
        ]  # fmt: skip


def floats(outputs: Any) -> list[Tensor]:
    """The floating-point tensors among `outputs`, in double precision: some networks with random weights fade away."""
    return [t.double() for t in pytree.tree_leaves(outputs) if isinstance(t, Tensor) and t.is_floating_point()]


def evaluate(name: str, scheme: Literal["static", "dynamic"]) -> Result:
    """Compile a model and compare it with itself in fp32."""
    torch.manual_seed(0)
    try:
        model, call = MODELS[name]()
        model = settled(model).requires_grad_(False)
        options: dict[str, Any] = {"calibration": [call]} if scheme == "static" else {}
        begin = time.perf_counter()
        q = fxquant.compile(model, scheme, **options)
        seconds = time.perf_counter() - begin
        one = {k: v[:1] if isinstance(v, Tensor) else v for k, v in call.items()}
        first, second, single = (floats(q(**given)) for given in (call, call, one))
        share, note = _share(q)
        return Result(
            name,
            scheme,
            share,
            quality=sqnr(floats(model(**call)), first),
            again=all(map(torch.equal, first, second)),
            one=sqnr(floats(model(**one)), single),
            ratio=_ratio(model, q, call),
            seconds=seconds,
            note=note,
        )
    except Exception as error:
        return Result(name, scheme, note=f"{type(error).__name__}: {str(error).splitlines()[0][:120]}")


def _share(q: fxquant.QuantizedModule) -> tuple[float, str]:
    layers = [row for row in q.report.rows if row.op.startswith(("linear", "conv")) and row.fp32_bytes]
    total = sum(row.fp32_bytes for row in layers)
    left = [row for row in layers if row.precision == "fp32"]
    islands = [f"{path or 'the model'} stays Python" for path in q.report.islands]
    note = "; ".join([*islands[:2], *([f"{left[0].node}: {left[0].reason}"] if left else [])])
    return 1 - sum(row.fp32_bytes for row in left) / max(total, 1), note


def _ratio(model: nn.Module, q: nn.Module, call: Call) -> float:
    with torch.no_grad():
        fp32, int8 = interleaved_times((lambda: model(**call), lambda: q(**call)), rounds=30, seconds=3).medians
    return int8 / fp32


def read(path: Path | None) -> dict[tuple[str, str], Result]:
    """The rows that a stopped run has left."""
    if path is None or not path.exists():
        return {}
    rows = [Result(**json.loads(line)) for line in path.read_text().splitlines()]
    return {(row.model, row.scheme): row for row in rows}


def summary(results: Mapping[tuple[str, str], Result]) -> list[str]:
    """Counts by scheme."""
    lines = []
    for scheme in ("static", "dynamic"):
        rows = [row for row in results.values() if row.scheme == scheme]
        lines.append(
            f"{scheme}: {sum(bool(r.seconds) for r in rows)} of {len(rows)} compile, "
            f"{sum(r.share >= 0.9 for r in rows)} with at least 90 % of the weights in int8; "
            f"{sum(r.good for r in rows)} with at least {ENOUGH} dB everywhere; "
            f"{sum(0 < r.ratio <= 1 for r in rows)} not slower than fp32"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="names (default: all)")
    parser.add_argument("--schemes", nargs="+", default=["static", "dynamic"], choices=["static", "dynamic"])
    parser.add_argument("--resume", type=Path, help="keep the rows in this file")
    add_markdown(parser)
    args = parser.parse_args()
    torch.set_num_threads(2)
    warnings.simplefilter("ignore")
    results = read(args.resume)
    wanted = [(name, scheme) for name in args.models or MODELS for scheme in args.schemes]
    for key in tqdm([key for key in wanted if key not in results], disable=None):
        results[key] = evaluate(*key)
        if args.resume:
            with args.resume.open("a") as file:
                file.write(json.dumps(asdict(results[key])) + "\n")
    show([([results[key].row() for key in wanted], COLUMNS)], args.markdown)
    print("", *summary(results), sep="\n")


if __name__ == "__main__":
    main()
