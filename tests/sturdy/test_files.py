"""The files that fxquant keeps: damaged, foreign or hostile ones are ignored or refused, and none is followed."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fxquant
from fxquant import ConfigError, QuantConfig
from fxquant.backends.x86.tuning.cache import TimesCache
from fxquant.compiler.core.files import read_json, write_json

from .process_state import DATA, NET, nearness

MEASURED = QuantConfig(deterministic=False)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FXQUANT_CACHE", str(tmp_path))
    return tmp_path / "kernels.json"


def compile_one() -> torch.Tensor:
    result: torch.Tensor = fxquant.compile(NET, calibration=DATA, config=MEASURED, backend="x86")(DATA[0])
    return result


BAD: dict[str, Callable[[Path], object]] = {
    "no JSON": lambda path: path.write_text("{"),
    "a list": lambda path: path.write_text("[1, 2]"),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x80"),
    "deep": lambda path: path.write_text("[" * 100_000 + "]" * 100_000),
    "FIFO": lambda path: os.mkfifo(path),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": lambda path: path.mkdir(),
    "loop": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_cache_is_ignored_with_one_line(kind: str, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    BAD[kind](cache)
    with caplog.at_level(logging.WARNING, "fxquant"):
        times = TimesCache()
        assert times.of("any") == {}
        times.add("any", {"kernel": 1.0})
        times.save()
    assert sum("are ignored" in record.getMessage() for record in caplog.records) == 1 and str(cache) in caplog.text


@pytest.mark.parametrize("time", ("NaN", "Infinity", "-1.0", "0.0", "1e308", '"fast"', "null", "true", "[]", "{}", "1"))
def test_an_entry_without_times_is_ignored(time: str, cache: Path) -> None:
    cache.write_text('{"bad": {"a": 1.0, "b": TIME}, "good": {"a": 1.0}}'.replace("TIME", time))
    found = TimesCache()
    assert found.of("bad") == {} and found.of("good") == {"a": 1.0}


def test_times_of_another_machine_or_version_do_not_count(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fxquant.backends.x86.tuning import tuner

    compile_one()
    first = json.loads(cache.read_text())
    monkeypatch.setattr(tuner, "machine", lambda: "another CPU")
    compile_one()
    assert len(json.loads(cache.read_text())) == 2 * len(first)


def test_a_planted_link_is_not_followed(cache: Path, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("mine")
    cache.symlink_to(target)
    compile_one()
    assert target.read_text() == "mine" and not cache.is_symlink() and json.loads(cache.read_text())


def test_a_full_disk_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "kernels.json"
    write_json(path, {"old": 1})
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from fxquant.compiler.core.files import write_json\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_json(Path(sys.argv[1]), ['x' * 100] * 100)\n"
        "except OSError: print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "refused"
    assert read_json(path) == {"old": 1} and os.listdir(tmp_path) == ["kernels.json"]


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FXQUANT_CACHE", str(tmp_path / "file" / "folder"))
    assert torch.isfinite(compile_one()).all()


def test_without_a_home_folder_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("FXQUANT_CACHE")
    monkeypatch.setattr(Path, "home", no_home)
    assert torch.isfinite(compile_one()).all()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files as Linux does")
def test_a_folder_in_place_of_a_file_stays_not_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(OSError, match="Is a directory"):
            read_json(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_two_processes_write_at_once(cache: Path) -> None:
    code = (
        "import sys; from fxquant.backends.x86.tuning.cache import TimesCache\n"
        "for i in range(100):\n"
        "    c = TimesCache(); c.add(f'{sys.argv[1]} {i}', {'a': 1.0}); c.save()\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, name]) for name in "ab"]
    assert [process.wait() for process in running] == [0, 0]
    assert os.listdir(cache.parent) == ["kernels.json"]
    assert {"a 99", "b 99"} & set(read_json(cache))


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_of_a_search_is_refused(kind: str, tmp_path: Path) -> None:
    if kind == "loop":
        pytest.skip("os.path.exists() is False: it is written anew")
    path = tmp_path / "search.json"
    BAD[kind](path)
    with pytest.raises(ConfigError, match=r"search\.json is not a file of a search"):
        fxquant.search(NET, DATA, nearness, max_drop=1.0, resume=path)


@pytest.mark.parametrize(
    "edit",
    (
        lambda data: data.update(fp32=float("nan")),
        lambda data: data.update(fp32=True),
        lambda data: data["trials"].append([["a"], "much"]),
        lambda data: data["trials"].append([[1], 1.0]),
        lambda data: data["sensitivity"]["rows"][0].update(only="much"),
        lambda data: data.pop("search"),
    ),
)
def test_an_edited_file_of_a_search_is_refused(edit: Callable[[Any], object], tmp_path: Path) -> None:
    path = tmp_path / "search.json"
    fxquant.search(NET, DATA, nearness, max_drop=1.0, resume=path)
    data = read_json(path)
    edit(data)
    write_json(path, data)
    with pytest.raises(ConfigError, match=r"search\.json is not a file of a search"):
        fxquant.search(NET, DATA, nearness, max_drop=1.0, resume=path)
