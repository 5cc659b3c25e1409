"""The file that keeps measured times from one process to the next."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ....compiler.core.files import cache_folder, read_json, write_json
from ....compiler.core.progress import log

Times = dict[str, float]  # milliseconds by the name of a kernel

LONGEST = 1e6  # milliseconds


class TimesCache:
    """Times of kernels by the key of a call, kept in ``$FXQUANT_CACHE/kernels.json`` (default ``~/.cache/fxquant``).

    A file that cannot be read or written is ignored, and so is an entry that holds no times.

    Args:
        on_disk: False keeps the times in memory alone.
    """

    def __init__(self, on_disk: bool = True) -> None:
        folder = cache_folder() if on_disk else None
        self._path = folder / "kernels.json" if folder else None
        self._times = _read(self._path, log.warning)
        self._new: dict[str, Times] = {}

    def of(self, key: str) -> Times:
        """The times known for ``key``."""
        return self._times.get(key, {})

    def add(self, key: str, times: Times, keep: bool = True) -> Times:
        """Know ``times`` for ``key``, besides those that are known. Returns all of them.

        Args:
            keep: also write them to the file.
        """
        known = self._times[key] = {**self.of(key), **times}
        if keep:
            self._new[key] = known
        return known

    def save(self) -> None:
        """Write the file if anything is new: the whole file, or nothing."""
        if self._path is None or not self._new:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, _read(self._path, log.debug) | self._new)  # other processes may have written it
        except OSError as error:
            log.warning("Measured times cannot be kept in %s: %s", self._path, error.strerror or error)
        self._new = {}


def _read(path: Path | None, warn: Callable[..., None]) -> dict[str, Times]:
    if path is None:
        return {}
    try:
        data = read_json(path)
        if not isinstance(data, dict):
            raise ValueError("it holds no table of times")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        warn("The measured times in %s are ignored: %s", path, error)
        return {}
    return {key: row for key, row in data.items() if _is_times(row)}


def _is_times(row: Any) -> bool:
    return isinstance(row, dict) and all(type(t) is float and 0 < t < LONGEST for t in row.values())


@lru_cache
def machine() -> str:
    """The CPU and the versions of torch and fxquant: times measured with others do not count."""
    names = [""]
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")][:1]
    own = "unknown"
    with contextlib.suppress(PackageNotFoundError):
        own = version("fxquant")
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{''.join(names)}|{capability}|torch {torch.__version__}|fxquant {own}"
