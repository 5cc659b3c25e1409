"""Who may import whom, and where a quantized dtype may be known."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("compiler", "passes", "backends", "examples")
SOURCES = [p for f in FOLDERS for p in sorted((ROOT / f).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    """Absolute names of all that ``path`` imports, whether at the top or within a function."""
    package = ["fxquant", *path.relative_to(ROOT).parts[:-1]]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{a.name}" for a in node.names)}
    return found


def under(names: set[str], *prefixes: str) -> set[str]:
    return {n for n in names for p in prefixes if n == p or n.startswith(p + ".")}


def files(folder: str) -> list[Path]:
    return [p for p in SOURCES if p.relative_to(ROOT).parts[0] == folder]


TOP = tuple(f"fxquant.compiler.{m}" for m in ("api", "pipeline", "module", "cli"))


@pytest.mark.parametrize("path", files("backends"), ids=str)
def test_backends_know_no_passes_and_no_api(path: Path) -> None:
    assert not under(imports(path), "fxquant.passes", *TOP)


@pytest.mark.parametrize("path", files("passes"), ids=str)
def test_passes_know_no_api(path: Path) -> None:
    assert not under(imports(path), *TOP)


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_nothing_imports_torch_ao(path: Path) -> None:
    assert not under(imports(path), "torch.ao", "torch.quantization")
    assert not re.search(r"import_module\([\"']torch\.(ao|quantization)", path.read_text())


@pytest.mark.parametrize("path", [p for p in SOURCES if "backends/x86" not in p.as_posix()], ids=str)
def test_only_one_folder_knows_quantized_dtypes(path: Path) -> None:
    assert not re.search(r"\bquint8|\bqint8|\bqint32|ops\.quantized|quantize_per_(tensor|channel)\b", path.read_text())


def test_the_law_is_tested_on_something() -> None:
    assert len(files("backends")) > 5 and len(files("passes")) > 5
    assert "fxquant.backends.base" in imports(ROOT / "passes" / "freeze.py")


def test_every_package_is_listed_for_the_wheel() -> None:
    folders = {p.parent for f in ("compiler", "passes", "backends") for p in (ROOT / f).rglob("__init__.py")}
    names = {".".join(("fxquant", *folder.relative_to(ROOT).parts)) for folder in folders}
    listed = set(re.findall(r'^    "(fxquant\.[\w.]+)",$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    assert listed == names
