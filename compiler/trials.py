"""Evaluated mixes, kept in a file so that a search that was stopped can go on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backends.x86.tune import machine
from .errors import ConfigError
from .evaluation import same
from .observers import observer_of
from .sensitivity import Sensitivity, UnitSensitivity
from .values import tensors_of
from .work import Work

FORMAT = "fxquant search 1"


class Trials:
    """What evaluate gave for each mix, by its ops in fp32.

    Args:
        path: where it is read from, if the file is there, and written after each evaluation; None keeps no file.
        work, seed: the calibrated model and the seed of evaluations; a file that belongs to others is refused.

    Raises:
        ConfigError: the file is not one of this search, or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str] | None, work: Work, seed: int) -> None:
        if path is not None and not isinstance(path, str | os.PathLike):
            raise ConfigError(f"resume is {path!r}; it must be the path of a file.")
        self.path = None if path is None else Path(path)
        self.values: dict[frozenset[str], float] = {}
        self.fp32: float | None = None
        self.sensitivity: Sensitivity | None = None
        if self.path is None:
            return
        self._search = _fingerprint(work, seed)
        if os.path.exists(self.path):  # False for what is no name of a file; saving tells why
            self._read(self.path)
        self.save()

    def begin(self, fp32: float) -> None:
        """Note what evaluate gives for the fp32 model.

        Raises:
            ConfigError: the file has another value: it was another function, or other data.
        """
        if self.fp32 is not None and not same(fp32, self.fp32):
            raise ConfigError(
                f"evaluate gives {fp32!r} for the fp32 model, and gave {self.fp32!r} in the search of {self.path}. "
                "Delete that file to begin anew."
            )
        self.fp32 = fp32
        self.save()

    def add(self, fp32: frozenset[str], value: float) -> None:
        """Note what evaluate gave for the mix with the ops ``fp32`` in fp32."""
        self.values[fp32] = value
        self.save()

    def save(self) -> None:
        """Write the file, whole or not at all."""
        if self.path is None:
            return
        data = {
            "format": FORMAT,
            "search": self._search,
            "fp32": self.fp32,
            "sensitivity": self.sensitivity and asdict(self.sensitivity),
            "trials": [[sorted(ops), value] for ops, value in self.values.items()],
        }
        draft = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        try:
            draft.write_text(json.dumps(data))
            draft.replace(self.path)
        except OSError as error:
            raise ConfigError(f"The search cannot be kept in {self.path}: {error.strerror}.") from error

    def _read(self, path: Path) -> None:
        try:
            data = json.loads(path.read_text())
            if data["format"] != FORMAT:
                raise ValueError(data["format"])
            belongs = data["search"] == self._search
            self.values = {frozenset(ops): float(value) for ops, value in data["trials"]}
            self.fp32 = None if data["fp32"] is None else float(data["fp32"])
            self.sensitivity = _sensitivity(data["sensitivity"])
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise ConfigError(f"{path} is not a file of a search ({error!r}). Name another in resume=.") from error
        if not belongs:
            raise ConfigError(
                f"{path} is of another search: the model, the configuration, the data, the seed or the CPU differ. "
                "Delete it, or name another file in resume=."
            )


def _sensitivity(data: dict[str, Any] | None) -> Sensitivity | None:
    if data is None:
        return None
    return Sensitivity(tuple(UnitSensitivity(**row) for row in data["rows"]), data["metric"], data["int8"])


def _fingerprint(work: Work, seed: int) -> str:
    """Equal for equal calibrated models on one kind of CPU."""
    digest = hashlib.sha256()
    observers = [o for m in work.gm.modules() if (o := observer_of(m)) is not None]
    seen = [(o.label, o.count, o.low, o.high) for o in observers]
    for part in (machine(), seed, work.gm.graph, work.options.config, work.options.backend.target, seen):
        digest.update(f"{part}\n".encode())
    for tensor in _tensors(work):
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _tensors(work: Work) -> Iterable[Tensor]:
    for _, tensor in sorted(work.gm.state_dict().items()):
        if isinstance(tensor, Tensor):
            yield tensor
    for args, kwargs in work.sample:
        yield from tensors_of([args, kwargs])
