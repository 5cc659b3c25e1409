"""A character LSTM on the documentation strings of Python's standard library: fp32, int8 dynamic and fp16.

Trains on real text (nothing is downloaded), then compares bits per character on held-out text, size and latency.
"""

import importlib
import inspect
import math
import pkgutil
import sys
import time
from functools import partial

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor, nn
from tqdm import trange

import fxquant
from fxquant.compiler.execution.timing import interleaved_medians

PACKAGES = ("asyncio", "collections", "concurrent", "email", "http", "importlib", "json", "logging", "unittest", "xml")
MODULES = (
    "argparse", "ast", "datetime", "decimal", "fractions", "functools", "inspect", "io",
    "itertools", "math", "os", "pathlib", "random", "re", "shutil", "socket",
    "sqlite3", "ssl", "statistics", "string", "struct", "subprocess", "tarfile", "tempfile",
    "textwrap", "threading", "urllib.request", "uuid", "zipfile",
)  # fmt: skip


def documentation() -> str:
    """The documentation strings of modules, classes and functions of the standard library, each once."""
    names = list(MODULES)
    for package in PACKAGES:
        names.append(package)
        path = importlib.import_module(package).__path__
        names += [f"{package}.{m.name}" for m in pkgutil.iter_modules(path) if not m.name.startswith("_")]
    seen: dict[str, None] = {}
    for name in names:
        try:
            module = importlib.import_module(name)
        except ImportError:  # for another system
            continue
        for item in (module, *(value for _, value in sorted(vars(module).items()))):
            members = vars(item).values() if inspect.isclass(item) else ()
            for owner in (item, *members):
                text = inspect.getdoc(owner) if callable(owner) or inspect.ismodule(owner) else None
                if text and len(text) > 80:
                    seen.setdefault(text)
    return "\n\n".join(text for text in seen if text.isascii())


class CharLSTM(nn.Module):
    """Next-character logits: int64 codes [N,T] -> [N,T,characters]."""

    def __init__(self, characters: int, features: int = 64, hidden: int = 512) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, features)
        self.lstm = nn.LSTM(features, hidden, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden, characters)

    def forward(self, codes: Tensor) -> Tensor:
        states, _ = self.lstm(self.embedding(codes))
        out: Tensor = self.head(states)
        return out


def train(model: CharLSTM, codes: Tensor, seconds: float, steps: int, length: int = 96, batch: int = 24) -> None:
    """Adam on random windows of the text, for ``seconds`` or ``steps``; the learning rate falls to nothing."""
    optimizer = torch.optim.Adam(model.parameters())
    end, begin = time.monotonic() + seconds, time.monotonic()
    model.train()
    for step in (progress := trange(steps, desc="train", unit="step", disable=None, leave=False)):
        left = min((end - time.monotonic()) / (end - begin), 1 - step / steps)
        if left <= 0:
            break
        optimizer.param_groups[0]["lr"] = 4e-3 * left
        starts = torch.randint(len(codes) - length - 1, (batch,))
        windows = codes[starts[:, None] + torch.arange(length + 1)]
        loss = F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        progress.set_postfix(bits=f"{loss.item() / math.log(2):.2f}")
    model.eval()


@torch.no_grad()
def bits_per_character(model: nn.Module, codes: Tensor, length: int = 512) -> float:
    """Mean cross-entropy [bits] of the next character, over windows that start without context."""
    windows = codes[: (len(codes) - 1) // length * length + 1].unfold(0, length + 1, length)
    losses = [F.cross_entropy(model(w[None, :-1])[0], w[1:]).item() for w in windows]
    return sum(losses) / len(losses) / math.log(2)


def main(seconds: float = 90.0, steps: int = 2000, hidden: int = 512, held_out: int = 40_000) -> dict[str, float]:
    """Returns bits per character of each form."""
    text = documentation()
    alphabet = sorted(set(text))
    print(f"{len(text):,} characters of documentation, {len(alphabet)} different ones, Python {sys.version.split()[0]}")
    codes = torch.tensor([alphabet.index(c) for c in text])
    torch.manual_seed(0)
    model = CharLSTM(len(alphabet), hidden=hidden)
    train(model, codes[:-held_out], seconds, steps)

    forms: dict[str, nn.Module] = {
        "fp32": model,
        "int8 dynamic": fxquant.compile(model, scheme="dynamic"),
        "fp16": fxquant.compile(model, scheme="dynamic", dtype=torch.float16),
    }
    print(forms["int8 dynamic"])  # what became of every layer

    sentence = codes[None, :100]
    with torch.no_grad():
        times = interleaved_medians([partial(form, sentence) for form in forms.values()])
    bits = {name: bits_per_character(form, codes[-held_out:]) for name, form in forms.items()}
    fp32 = 4 * sum(p.numel() for p in model.parameters())
    sizes = [
        form.report.compiled_bytes if isinstance(form, fxquant.QuantizedModule) else fp32 for form in forms.values()
    ]
    rows = [
        (name, f"{bits[name]:.4f}", f"{size / 2**20:.2f}", f"{ms:.2f}")
        for (name, size, ms) in zip(forms, sizes, times, strict=True)
    ]
    print(tabulate(rows, ("form", "bits per character", "MiB", "ms per 100 characters"), disable_numparse=True))
    return bits


if __name__ == "__main__":
    main()
