"""The file that keeps measured times from one process to the next."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from functools import lru_cache
from pathlib import Path

import torch

Times = dict[str, float]  # milliseconds by the name of a kernel; infinite for one whose result is wrong


class TimesCache:
    """Times of kernels by the key of a call, kept in ``$FXQUANT_CACHE/kernels.json`` (default ``~/.cache/fxquant``).

    A file that cannot be read or written is ignored.

    Args:
        on_disk: False keeps the times in memory alone.
    """

    def __init__(self, on_disk: bool = True) -> None:
        self._path = cache_folder() / "kernels.json" if on_disk else None
        self._times = _read(self._path)
        self._changed = False

    def of(self, key: str) -> Times:
        """The times known for ``key``."""
        return self._times.setdefault(key, {})

    def add(self, key: str, times: Times) -> None:
        """Keep ``times`` for ``key``, besides those that are known."""
        self.of(key).update(times)
        self._changed = True

    def save(self) -> None:
        """Write the file if anything is new: the whole file, or nothing."""
        if self._path is None or not self._changed:
            return
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            merged = _read(self._path) | self._times
            draft = self._path.with_suffix(f".{os.getpid()}.{threading.get_ident()}.tmp")
            draft.write_text(json.dumps(merged))
            draft.replace(self._path)
        self._changed = False


def cache_folder() -> Path:
    """Where measured times are kept."""
    return Path(os.environ.get("FXQUANT_CACHE") or Path.home() / ".cache" / "fxquant")


def _read(path: Path | None) -> dict[str, Times]:
    try:
        data = json.loads(path.read_text()) if path else {}
    except (OSError, ValueError):
        return {}
    if not isinstance(data, dict):
        return {}
    return {k: v for k, v in data.items() if isinstance(v, dict) and all(isinstance(t, float) for t in v.values())}


@lru_cache
def machine() -> str:
    """The CPU and the version of torch: times measured on another machine do not count."""
    names = [""]
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")][:1]
    return f"{''.join(names)}|{torch.backends.cpu.get_cpu_capability()}|torch {torch.__version__}"
