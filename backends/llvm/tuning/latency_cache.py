"""Measured latencies of programs, from one search to the next."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ....compiler.core.files import cache_folder, read_json, write_json
from ....compiler.core.progress import log
from ...base.backend import Latencies
from ...base.program import FrozenProgram
from ..runtime.object_cache import generator

MOST = 256  # programs that are kept


class LatencyCache:
    """Latencies in ``$FXQUANT_CACHE/latencies.json`` by program, shapes, threads and machine.

    A file that cannot be read or written is ignored, and so is an entry of another form.
    """

    def __init__(self, machine: str) -> None:
        self._machine = machine
        folder = cache_folder()
        self._path = folder / "latencies.json" if folder else None

    def key(self, program: FrozenProgram) -> str:
        """Equal for equal programs on equal inputs."""
        shapes = [(n.name, i.shape, str(i.dtype)) for n, i in program.values.items() if n.op == "placeholder"]
        graph, kept = str(program.module.graph), program.keep_roundings
        parts = (self._machine, torch.__version__, torch.get_num_threads(), generator(), graph, kept, shapes)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def read(self, key: str) -> Latencies | None:
        """The latencies under ``key``."""
        return _latencies(_known(self._path).get(key))

    def write(self, key: str, found: Latencies) -> None:
        """Keep latencies, if the disk takes them."""
        table = _known(self._path)
        table[key] = asdict(found)
        while len(table) > MOST:
            del table[next(iter(table))]
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, table)
        except OSError as error:
            log.warning("Latencies cannot be kept in %s: %s", self._path, error.strerror or error)


@cache
def _known(path: Path | None) -> dict[str, Any]:
    """What the file holds, and what is added in this process."""
    if path is None:
        return {}
    try:
        table = read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("The latencies in %s are ignored: %s", path, error)
        return {}
    return table if isinstance(table, dict) else {}


def _latencies(entry: Any) -> Latencies | None:
    if not isinstance(entry, dict) or set(entry) != {f.name for f in fields(Latencies)}:
        return None
    *times, fused = (entry[f.name] for f in fields(Latencies))
    numbers = all(isinstance(t, dict) and all(type(v) is float and 0 <= v < 1e6 for v in t.values()) for t in times)
    names = isinstance(fused, dict) and all(isinstance(v, str) for v in fused.values())
    return Latencies(**entry) if numbers and names else None
