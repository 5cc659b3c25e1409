"""Fingerprints of compiled models, to show that a change of the code changes no result.

`python -m benchmarks.fingerprints record FILE` before the change, `... compare FILE` after it. A fingerprint is the
SHA-256 of the outputs on held-out inputs. Set `FXQUANT_CACHE` to one folder for both runs, so that both take the same
kernels; fill it by a first run that is thrown away. Compile times of both runs are printed side by side.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fxquant
from tests.models import ZOO, batches, settled
from tests.sequence_models import SEQUENCES

from .peers import quiet

MODELS = {**ZOO, **SEQUENCES}
STEPS = 2  # of quantization-aware training
DYNAMIC = ("bert_encoder", "vit", "lstm_classifier", *SEQUENCES)
CNNS = tuple(name for name, model in ZOO.items() if model.kind in ("cnn", "segmentation"))


def static(name: str, model: nn.Module) -> nn.Module:
    return fxquant.compile(model, calibration=batches(name, 8, 1, seed=1, zoo=MODELS))


def dynamic(name: str, model: nn.Module) -> nn.Module:
    return fxquant.compile(model, scheme="dynamic")


def fp16(name: str, model: nn.Module) -> nn.Module:
    return fxquant.compile(model, scheme="dynamic", dtype=torch.float16)


def qat(name: str, model: nn.Module) -> nn.Module:
    """A few steps of SGD, so that learned and followed ranges have moved."""
    prepared = fxquant.prepare(model, scheme="qat", calibration=batches(name, 2, 2, seed=1, zoo=MODELS)).train()
    optimizer = torch.optim.SGD(prepared.parameters(), 1e-3)
    for (x,) in batches(name, STEPS, 2, seed=3, zoo=MODELS):
        optimizer.zero_grad()
        prepared(x).square().mean().backward()
        optimizer.step()
    return fxquant.convert(prepared.eval())


SCHEMES: dict[str, tuple[Callable[[str, nn.Module], nn.Module], tuple[str, ...]]] = {
    "static": (static, tuple(ZOO)),
    "dynamic": (dynamic, DYNAMIC),
    "fp16": (fp16, DYNAMIC),
    "qat": (qat, CNNS),
}


def tensors(value: Any) -> list[Tensor]:
    """The tensors in a nested output."""
    if isinstance(value, Tensor):
        return [value]
    return [t for v in value for t in tensors(v)] if isinstance(value, list | tuple) else []


@torch.no_grad()
def digest(module: nn.Module, name: str) -> str:
    """SHA-256 of the outputs for batches of one, one (which may run another form than the first call) and three."""
    found = hashlib.sha256()
    for inputs in (*batches(name, 2, 1, seed=2, zoo=MODELS), *batches(name, 1, 3, seed=4, zoo=MODELS)):
        for tensor in tensors(module(*inputs)):
            found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def measure(scheme: str, name: str) -> dict[str, Any]:
    """Fingerprint, ops by precision, and seconds of a compilation."""
    build, model = SCHEMES[scheme][0], settled(name, zoo=MODELS)
    torch.manual_seed(0)
    start = time.perf_counter()
    with quiet():
        module = build(name, model)
    seconds = time.perf_counter() - start
    assert isinstance(module, fxquant.QuantizedModule)
    return {"digest": digest(module, name), "ops": module.report.counts, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fingerprints", description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", default="", help="a part of the scheme's and model's name, such as 'static resnet'")
    options = parser.parse_args()
    torch.set_num_threads(2)
    known = json.loads(options.file.read_text()) if options.what == "compare" else {}
    found, changed = dict[str, Any](), 0
    for scheme, (_, names) in SCHEMES.items():
        for key, name in ((f"{scheme} {n}", n) for n in names):
            if options.only not in key:
                continue
            now = found[key] = measure(scheme, name)
            before = known.get(key, now)
            same = before["digest"] == now["digest"]
            changed += not same
            verdict = "" if options.what == "record" else "same" if same else f"CHANGED: {before['ops']} {now['ops']}"
            print(f"{key:28} {before['seconds']:7.2f} s {now['seconds']:7.2f} s  {verdict}", flush=True)
    if options.what == "record":
        options.file.write_text(json.dumps(found, indent=1))
    sys.exit(bool(changed))


if __name__ == "__main__":
    main()
