"""Object code on disk: used again by the next process, and only if nobody else could have made it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch
from torch import nn

import fxquant
from fxquant.backends.llvm.runtime import kernels, object_cache
from fxquant.backends.llvm.runtime.cpu import Cpu
from fxquant.backends.llvm.runtime.object_cache import ObjectCache

CPU = Cpu("any", "+some")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the cache, empty; nothing is in memory."""
    monkeypatch.setenv("FXQUANT_CACHE", str(tmp_path))
    monkeypatch.setattr(kernels, "_OBJECTS", type(kernels._OBJECTS)())
    return tmp_path / "objects"


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.o"))


def test_the_second_process_compiles_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU()), [(torch.randn(1, 3, 9, 9),) for _ in range(2)]
    first = fxquant.compile(model, calibration=data, backend="llvm")
    assert files(folder)
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o600 for p in files(folder))
    kernels._OBJECTS.clear()  # as in a new process
    monkeypatch.setattr(kernels, "compile_ir", lambda *args: pytest.fail("compiled again"))
    second = fxquant.compile(model, calibration=data, backend="llvm")
    assert torch.equal(first(*data[0]), second(*data[0]))


def test_damaged_code_is_not_used(folder: Path) -> None:
    cache = ObjectCache(CPU)
    cache.write("kernel", b"some code")
    assert cache.read("kernel") == b"some code"
    (path,) = files(folder)
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole + b"x", bytes([whole[0] ^ 1]) + whole[1:], b"", whole[:5]):
        path.write_bytes(damaged)
        assert cache.read("kernel") is None


def test_code_for_another_kernel_cpu_orgenerator_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ObjectCache(CPU)
    cache.write("kernel", b"some code")
    assert cache.read("other") is None
    assert ObjectCache(Cpu("any", "+other")).read("kernel") is None
    (path,) = files(folder)
    path.rename(cache._path(folder, "other"))  # under the name of another
    assert cache.read("other") is None
    path.with_name(cache._path(folder, "other").name).rename(path)
    assert cache.read("kernel") == b"some code"
    monkeypatch.setattr(object_cache, "generator", lambda: "a new version")
    assert ObjectCache(CPU).read("kernel") is None


@pytest.mark.parametrize("mode", [stat.S_IWGRP, stat.S_IWOTH])
def test_what_others_may_write_is_not_used(folder: Path, mode: int) -> None:
    cache = ObjectCache(CPU)
    cache.write("kernel", b"some code")
    (path,) = files(folder)
    path.chmod(0o600 | mode)
    assert cache.read("kernel") is None
    path.chmod(0o600)
    folder.chmod(0o700 | mode)
    assert ObjectCache(CPU).read("kernel") is None
    ObjectCache(CPU).write("other", b"more")
    assert len(files(folder)) == 1


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can give a file away")
def test_what_another_user_owns_is_not_used(folder: Path) -> None:
    cache = ObjectCache(CPU)
    cache.write("kernel", b"some code")
    os.chown(files(folder)[0], 12345, 12345)
    assert cache.read("kernel") is None


def test_what_was_used_longest_ago_goes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_cache, "LARGEST", 1000)
    cache = ObjectCache(CPU)
    for number in range(5):
        cache.write(f"kernel{number}", bytes(300))
        os.utime(cache._path(folder, f"kernel{number}"), (number, number))
    cache.write("last", bytes(300))
    assert cache.read("last") is not None and cache.read("kernel0") is None
    assert sum(p.stat().st_size for p in files(folder)) <= 1000


def test_a_disk_that_takes_nothing_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("FXQUANT_CACHE", str(tmp_path / "file"))
    cache = ObjectCache(CPU)
    cache.write("kernel", b"some code")
    assert cache.read("kernel") is None
