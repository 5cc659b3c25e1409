"""Object code on disk, from one process to the next."""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path

from ....compiler.core.files import cache_folder, write_file
from ....compiler.core.progress import log
from .cpu import Cpu

LARGEST = 256 * 2**20  # bytes that are kept; beyond it, what was used longest ago goes
CHECKSUM = 32  # bytes at the start of a file


class ObjectCache:
    """Object code in ``$FXQUANT_CACHE/objects`` (default ``~/.cache/fxquant``), by CPU, generator and kernel.

    A file is used only if its checksum fits what it is for, and if it and the folder belong to this user and nobody
    else may write them. Any other file is ignored.
    """

    def __init__(self, cpu: Cpu) -> None:
        self._key = hashlib.sha256(f"{cpu}|{generator()}".encode()).digest()
        self._folder = _safe_folder()

    def read(self, name: str) -> bytes | None:
        """The object code of the kernel ``name``; None if it is not there."""
        if self._folder is None:
            return None
        path = self._path(self._folder, name)
        try:
            with open(path, "rb") as file:
                if not _is_ours(os.fstat(file.fileno()), stat.S_ISREG):
                    return None
                content = file.read(LARGEST)
        except OSError:
            return None
        checksum, code = content[:CHECKSUM], content[CHECKSUM:]
        if checksum != self._checksum(name, code):
            log.debug("The object code in %s is damaged, and is made anew.", path)
            return None
        with suppress(OSError):
            os.utime(path)
        return code

    def write(self, name: str, code: bytes) -> None:
        """Keep object code, if the disk takes it."""
        if self._folder is None:
            return
        try:
            write_file(self._path(self._folder, name), self._checksum(name, code) + code, mode=0o600)
            _trim(self._folder)
        except OSError as error:
            log.debug("Object code cannot be kept in %s: %s", self._folder, error.strerror or error)
            self._folder = None

    def _path(self, folder: Path, name: str) -> Path:
        return folder / f"{hashlib.sha256(self._key + name.encode()).hexdigest()}.o"

    def _checksum(self, name: str, code: bytes) -> bytes:
        return hashlib.sha256(self._key + name.encode() + code).digest()


def _safe_folder() -> Path | None:
    """The folder, made if need be; None if it is not this user's alone."""
    folder = cache_folder()
    if folder is None:
        return None
    path = folder / "objects"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return path if _is_ours(found, stat.S_ISDIR) else None


def _is_ours(found: os.stat_result, kind: object) -> bool:
    own = not hasattr(os, "getuid") or found.st_uid == os.getuid()
    return own and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and kind(found.st_mode)  # type: ignore[operator]


def _trim(folder: Path) -> None:
    """Remove the files that were used longest ago, if there is too much."""
    with os.scandir(folder) as entries:
        found = [(e.stat().st_mtime, e.stat().st_size, e.path) for e in entries if e.is_file(follow_symlinks=False)]
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= LARGEST:
            return
        with suppress(OSError):
            os.unlink(path)
            total -= size


@cache
def generator() -> str:
    """What makes code of a kernel's description: the sources of the generators, and LLVM."""
    root, content = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(p for room in ("codegen", "kernels", "runtime") for p in (root / room).glob("*.py")):
        content.update(path.read_bytes())
    return f"{version('llvmlite')}|{content.hexdigest()}"
