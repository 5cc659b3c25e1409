"""Small files of ours: read with care, written whole or not at all."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

LARGEST = 64 * 2**20  # bytes


def cache_folder() -> Path | None:
    """Where measured times and object code are kept: ``$FXQUANT_CACHE``; None if there is no home folder, either."""
    given = os.environ.get("FXQUANT_CACHE")
    if given:
        return Path(given)
    try:
        return Path.home() / ".cache" / "fxquant"
    except RuntimeError:
        return None


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, is larger than 64 MiB, or holds no JSON.
    """
    with open(path, "rb", opener=_open_at_once) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is not a regular file")
        if found.st_size > LARGEST:
            raise ValueError(f"it is larger than {LARGEST >> 20} MiB")
        try:
            return json.loads(file.read())
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error


def _open_at_once(path: str, flags: int) -> int:
    """Opening a FIFO would wait for a writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, see :func:`write_file`.

    Raises:
        OSError: it cannot be written.
    """
    write_file(path, json.dumps(content).encode())


def write_file(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file, or leave the old one as it is. A link at ``path`` is replaced, not followed.

    Raises:
        OSError: it cannot be written.
    """
    # A new name that nobody can guess, opened for us alone.
    number, draft = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
        os.chmod(draft, mode)
        os.replace(draft, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(draft)
        raise
