"""Evaluated mixes, kept in a file, so that a search that was stopped can go on."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.files import read_json, write_json
from ..core.tensors import tensors_of
from ..diagnosis.sensitivity import Sensitivity, UnitSensitivity
from ..numerics.stubs import observers_of
from ..workflows.stages import CalibratedModel
from .evaluation import same

FORMAT = "fxquant search 1"


class Trials:
    """The values of evaluated mixes, by their ops in fp32.

    Args:
        path: a file that is read if it exists, and written after each evaluation; None keeps no file.
        model, seed: the calibrated model and the seed of evaluations; a file of others is refused.

    Raises:
        ConfigError: the file is not one of this search, or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str] | None, model: CalibratedModel, seed: int) -> None:
        if path is not None and not isinstance(path, str | os.PathLike):
            raise ConfigError(f"resume is {path!r}; it must be the path of a file.")
        self.path = None if path is None else Path(path)
        self.values: dict[frozenset[str], float] = {}
        self.fp32: float | None = None
        self.sensitivity: Sensitivity | None = None
        if self.path is None:
            return
        self._search = _fingerprint(model, seed)
        if os.path.exists(self.path):  # False for a name that no file can have; save() says why
            self._read(self.path)
        self.save()

    def begin(self, fp32: float) -> None:
        """Keep the value of the fp32 model.

        Raises:
            ConfigError: the file has another value: that of another function, or of other data.
        """
        if self.fp32 is not None and not same(fp32, self.fp32):
            raise ConfigError(
                f"evaluate returns {fp32!r} for the fp32 model, but returned {self.fp32!r} in the search recorded in "
                f"{self.path}. Delete that file to start again."
            )
        self.fp32 = fp32
        self.save()

    def add(self, fp32: frozenset[str], value: float) -> None:
        """Keep the value of the mix with the ops ``fp32`` in fp32."""
        self.values[fp32] = value
        self.save()

    def save(self) -> None:
        """Write the file: the whole file, or nothing."""
        if self.path is None:
            return
        data = {
            "format": FORMAT,
            "search": self._search,
            "fp32": self.fp32,
            "sensitivity": self.sensitivity and asdict(self.sensitivity),
            "trials": [[sorted(ops), value] for ops, value in self.values.items()],
        }
        try:
            write_json(self.path, data)
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            raise ConfigError(
                f"The search cannot be saved to {self.path}: {getattr(error, 'strerror', None) or error}."
            ) from error

    def _read(self, path: Path) -> None:
        try:
            data = read_json(path)
            if data["format"] != FORMAT:
                raise ValueError(data["format"])
            belongs = data["search"] == self._search
            self.values = {frozenset(map(_text, ops)): _number(value) for ops, value in data["trials"]}
            self.fp32 = None if data["fp32"] is None else _number(data["fp32"])
            if self.fp32 is not None and not math.isfinite(self.fp32):
                raise ValueError("the value of the fp32 model is not finite")
            self.sensitivity = _sensitivity(data["sensitivity"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{path} is not a file of a search ({error!r}). Name another in resume=.") from error
        if not belongs:
            raise ConfigError(
                f"{path} belongs to another search: the model, the configuration, the data, the seed or the CPU "
                "differ. Delete it, or name another file in resume=."
            )


def _sensitivity(data: dict[str, Any] | None) -> Sensitivity | None:
    if data is None:
        return None
    rows = tuple(UnitSensitivity(**row) for row in data["rows"])
    for row in rows:
        for text in (row.node, row.key, row.op):
            _text(text)
        for number in (row.only, row.but):
            _number(number)
    return Sensitivity(rows, _text(data["metric"]), _number(data["int8"]))


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is not a number")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a name")
    return value


def _fingerprint(model: CalibratedModel, seed: int) -> str:
    """Equal for equal calibrated models on the same kind of CPU."""
    digest = hashlib.sha256()
    backend, config = model.options.backend, model.options.config
    seen = [(o.label, o.count, o.low, o.high) for o in observers_of(model.gm).values()]
    for part in (backend.machine, seed, model.gm.graph, config, backend.target, seen):
        digest.update(f"{part}\n".encode())
    for tensor in _tensors(model):
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _tensors(model: CalibratedModel) -> Iterable[Tensor]:
    for _, tensor in sorted(model.gm.state_dict().items()):
        if isinstance(tensor, Tensor):
            yield tensor
    for args, kwargs in model.sample:
        yield from tensors_of([args, kwargs])
